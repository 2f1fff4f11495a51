"""Runs the AWS CLI many times in one process: starting it takes longer than what it does.

Reads calls, one a line, as one types them after `aws`. Writes a line of JSON for each: [exit status, what it
said to stderr]. To be run with the Python that the AWS CLI is installed in.
"""

import contextlib
import io
import json
import os
import sys

from awscli.clidriver import create_clidriver

answers = sys.stdout
driver = create_clidriver()
with open(os.devnull, "w") as nowhere:
    for call in sys.stdin:
        said = io.StringIO()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(said):
            status = driver.main(call.split())
        print(json.dumps([status, said.getvalue()]), file=answers, flush=True)
