/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_coll_mpi: MPI_Allreduce as `weft bench coll` measures all_reduce; bench_coll.py compiles it with
 * mpicc and runs both by turns.
 *
 * bench_coll_mpi MIN_BYTES MAX_BYTES FACTOR SECONDS: a line a size: bytes and seconds of the slowest rank.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define WARMUP         5
#define MIN_ITERATIONS 5
#define MAX_ITERATIONS 20000

static double time_round(const float *in, float *out, int n, int iterations)
{
    for (int i = 0; i < WARMUP; i++) {
        MPI_Allreduce(in, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    const double begin = MPI_Wtime();
    for (int i = 0; i < iterations; i++) {
        MPI_Allreduce(in, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    }
    double seconds = (MPI_Wtime() - begin) / iterations;
    MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return seconds;
}

static int choose_iterations(double seconds, double seconds_of_round)
{
    const double fitting = seconds_of_round / (seconds > 1e-9 ? seconds : 1e-9);
    return fitting < MIN_ITERATIONS   ? MIN_ITERATIONS
           : fitting > MAX_ITERATIONS ? MAX_ITERATIONS
                                      : (int)fitting;
}

int main(int argc, char **argv)
{
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc != 5) {
        fprintf(stderr, "usage: bench_coll_mpi MIN_BYTES MAX_BYTES FACTOR SECONDS\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    const size_t max_bytes = strtoull(argv[2], NULL, 10);
    float *in = aligned_alloc(4096, (max_bytes + 4095) / 4096 * 4096);
    float *out = aligned_alloc(4096, (max_bytes + 4095) / 4096 * 4096);
    if (in == NULL || out == NULL) {
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (size_t i = 0; i < max_bytes / sizeof(float); i++) {
        in[i] = (float)(i % 8);
        out[i] = 0;
    }
    for (size_t bytes = strtoull(argv[1], NULL, 10); bytes <= max_bytes;
         bytes *= strtoull(argv[3], NULL, 10)) {
        const int n = (int)(bytes / sizeof(float));
        const double first = time_round(in, out, n, MIN_ITERATIONS);
        const double seconds =
            time_round(in, out, n, choose_iterations(first, strtod(argv[4], NULL)));
        if (rank == 0) {
            printf("%zu %.9f\n", bytes, seconds);
            fflush(stdout);
        }
    }
    free(out);
    free(in);
    MPI_Finalize();
    return 0;
}
