"""fastlip doctor."""

import json

import pytest
import torch
from command_line import assert_one_line

from fastlip.kernels.common import binding


def test_doctor_gives_a_reason_for_every_backend(cli):
    code, output, _ = cli("doctor")
    assert code == 0
    assert "maxmin" in output
    code, output, _ = cli("doctor", "--json")
    report = json.loads(output)
    assert report["versions"]["torch"] == torch.__version__
    for backends in report["ops"].values():
        assert backends["reference"] == "ok"
        assert all(backends.values())


def test_doctor_fails_where_a_required_backend_is_missing(cli, monkeypatch):
    from fastlip import diagnosis

    monkeypatch.setattr(diagnosis, "_status", lambda op, backend: "no compiler" if backend == "native" else "")
    assert_one_line(cli("doctor", "--require=native"), "native: no compiler")
    assert cli("doctor", "--require=triton")[0] == 0


def test_every_native_backend_finds_its_kernels_in_a_built_extension(cli):
    try:
        binding.library("cpu")
    except ImportError as error:
        pytest.skip(str(error))
    code, _, errors = cli("doctor", "--require=native")
    assert (code, errors) == (0, "")
