"""The JavaScript of the guide to deployment, run by Node with onnxruntime-web: the labels and radii of certify."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fastlip

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "deploy.md"
CALL = """
import fs from "node:fs";
import { classify } from "./classify.mjs";
console.log(JSON.stringify(await classify(Float32Array.from(JSON.parse(fs.readFileSync("pixels.json"))))));
"""


@pytest.mark.slow
def test_the_page_runs_in_node(tmp_path):
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("no Node")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--prefix", str(tmp_path), "onnxruntime-web"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install onnxruntime-web: {installed.stderr[-300:]}")
    code = re.search(r'```js title="classify.mjs"\n(.*?)```', GUIDE.read_text(), re.DOTALL)
    (tmp_path / "classify.mjs").write_text(code.group(1))
    (tmp_path / "call.mjs").write_text(CALL)

    model, data = fastlip.models.create_model("cayley_xs.digits", pretrained=True), fastlip.data.digits()
    images = data.test.all_pixels[:20] / data.divisor
    labels = model(images).argmax(1)
    fastlip.export(model, tmp_path / "net.onnx", radius=True)
    (tmp_path / "pixels.json").write_text(json.dumps(images.flatten().tolist()))
    found = subprocess.run(["node", "call.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert [row["label"] for row in rows] == labels.tolist()
    expected = fastlip.certify(model, [(images, labels)], eps=[], bounds=(0, 1)).radii
    radii = torch.tensor([row["radius"] for row in rows], dtype=expected.dtype)
    torch.testing.assert_close(radii, expected, rtol=0, atol=1e-5)
