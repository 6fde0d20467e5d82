"""What integration/test_schemathesis.py changes in the requests that schemathesis makes up."""

import os

import schemathesis


def whole(value):
    """5.0 is an integer to JSON Schema; ovsd takes 5 alone."""
    if isinstance(value, dict):
        return {key: whole(member) for key, member in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def before_call(ctx, case, kwargs):
    case.body = whole(case.body)
    # A backend's path is a path of this machine: below the root of the ovsd under test.
    backend = case.body
    if isinstance(backend, dict) and isinstance(backend.get("backend"), dict):
        backend = backend["backend"]
    path = backend.get("path") if isinstance(backend, dict) else None
    if isinstance(path, str) and path.startswith("/"):
        backend["path"] = os.environ["OVS_TEST_ROOT"] + "/backends" + path
    # Stores are tried at once: nobody else is asked.
    remote = backend.get("remote") if isinstance(backend, dict) else None
    if isinstance(remote, dict) and isinstance(remote.get("endpoint"), str) and remote["endpoint"].startswith("http"):
        remote["endpoint"] = "http://127.0.0.1:1"
