"""Known nodes and files of nodes."""

import dataclasses
import json

import pytest

from scaler.core.errors import ScalerError
from scaler.planning import hardware

ON = hardware.Hardware("a test", 2, 10e9, {"bf16": 1e12, "fp32": 1e11}, 1e11, 1e10, 1e9, latency=0.0)


def test_every_known_node_loads():
    known = hardware.yaml.safe_load(hardware.TABLE.read_text())["nodes"]
    for name in known:
        assert hardware.load(name).devices == known[name]["devices"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"devices": 0}, "devices=0, but it is at least 1"),
        ({"between": -1.0}, "between=-1.0, but it is above 0"),
        ({"flops": {"fp8": 1.0}}, "flops='fp8'"),
        ({"measured": ("speed",)}, "measured='speed'"),
        ({"price": -2.0}, "price=-2.0"),
    ],
)
def test_impossible_hardware_is_refused(change, said):
    with pytest.raises(ScalerError, match=said):
        dataclasses.replace(ON, **change)


def test_a_file_of_hardware_is_read_strictly(tmp_path):
    good = {**dataclasses.asdict(ON), "measured": ["inside"]}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(good))
    assert hardware.load(str(file)) == dataclasses.replace(ON, measured=("inside",))
    file.write_text(json.dumps({**good, "bandwith": 3}))
    with pytest.raises(ScalerError, match="unknown key bandwith"):
        hardware.load(str(file))
    file.write_text("{")
    with pytest.raises(ScalerError, match="not YAML"):
        hardware.load(str(file))
