"""fastlip audit."""

import json


def test_audit_names_every_layer(cli, trained):
    code, output, _ = cli("audit", trained)
    assert code == 0
    assert "block1" in output
    code, output, _ = cli("audit", trained, "--json", "--backend=reference")
    assert code == 0
    assert json.loads(output)["bound"] <= 1 + 1e-6
