# SPDX-License-Identifier: Apache-2.0
"""A split service is broken under load: split_faults.py on the shipped binary.

WEFT_TEST_SEED draws the faults and their moments; WEFT_TEST_LONG runs all, otherwise a twentieth.
"""
import os

import pytest

from conftest import need_server
from split_faults import Campaign

SEED = int(os.environ.get("WEFT_TEST_SEED", "1"))
FAULTS = 500 if os.environ.get("WEFT_TEST_LONG") else 25


@pytest.mark.timeout(300 + 40 * FAULTS)
def test_no_fault_costs_more_than_its_own_request():
    need_server()
    with Campaign(SEED, FAULTS) as campaign:
        for i in range(FAULTS):
            campaign.run_fault(i)
            print(f"seed {SEED}, fault {i}, {campaign.kinds[i].__name__}", flush=True)
        seen = campaign.service.totals()
        print(f"seed {SEED}:", dict(campaign.done), seen, flush=True)
        assert seen["flipped"] > 0 and seen["cuts"] > 0
        assert seen["pulls"] > FAULTS and seen["fallbacks"] > 0 and seen["expired"] > 0
        campaign.stop()
