"""Keeps what schemathesis makes up inside the root of the ovsd under test: a backend's path is a path of this machine."""

import os

import schemathesis


@schemathesis.hook
def before_call(ctx, case, kwargs):
    backend = case.body
    if isinstance(backend, dict) and isinstance(backend.get("backend"), dict):
        backend = backend["backend"]
    path = backend.get("path") if isinstance(backend, dict) else None
    if isinstance(path, str) and path.startswith("/"):
        backend["path"] = os.environ["OVS_TEST_ROOT"] + "/backends" + path
