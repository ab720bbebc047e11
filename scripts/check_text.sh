#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_text.sh: what no file of the tree may hold: paths of one machine, secrets; and scripts
# without their license line. Prints each finding and exits with 1.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
status=0

# forbid WHAT REGEX: no tracked text file but this one and the vectors may match.
forbid() {
    if git grep -nIE -e "$2" -- . ':!tests/vectors' ':!scripts/check_text.sh' >&2; then
        echo "check_text: $1" >&2
        status=1
    fi
}

forbid "a path of one machine" '(^|[^[:alnum:]_./-])/(home|root|work|farm|Users)/[[:alnum:]_.]'
forbid "a private key" '-----BEGIN ([A-Z]+ )?PRIVATE KEY-----'
forbid "an access token" '(ghp|gho|ghs|glpat|hf|sk|xox[abp])[-_][[:alnum:]]{20,}|AKIA[0-9A-Z]{16}'
forbid "a merge conflict" '^(<<<<<<<|>>>>>>>) '

# The sources' lines are the arch test's business.
for file in $(git ls-files '*.py' '*.sh' '*.cmake' '*CMakeLists.txt' dev .ci/run); do
    if ! head -n 2 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0'; then
        echo "$file: check_text: no SPDX line at its top" >&2
        status=1
    fi
done
exit $status
