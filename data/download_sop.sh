#!/bin/sh
# Fetch Stanford Online Products into the folder of this script.
exec "${PYTHON:-python}" "$(dirname "$0")/download.py" sop "$@"
