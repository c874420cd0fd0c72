"""What an export leaves behind, and what it never takes away."""

import os

import pytest
from conftest import network_of
from failures import failing
from on_disk import names

from scaler.data import prepared
from scaler.model import folder as model_folder
from scaler.training import export as training_export


@pytest.fixture
def export(tiny_recipe, tmp_path):
    """Export the recipe's untrained model, with this card."""
    network, tokenizer = network_of(tiny_recipe), prepared.open_prepared(tiny_recipe).tokenizer
    state = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    return lambda card: training_export.export(state, network, tokenizer, card, tmp_path / "export")


def test_a_source_whose_name_is_no_unicode_costs_no_export(export, tmp_path):
    checksums = export("trained on caf\udce9.txt")
    assert (tmp_path / "export" / "README.md").read_text() == "trained on caf\\udce9.txt"
    assert set(checksums) == set(names(tmp_path / "export")) - {"README.md"}
    assert model_folder.problem(tmp_path / "export", checksums) is None


def test_a_newer_export_replaces_the_older_one_or_leaves_it(export, tmp_path, monkeypatch):
    export("first")
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="no such colour"):
        patched.setattr(training_export.AutoModelForMaskedLM, "from_pretrained", failing)
        export("second")
    assert (tmp_path / "export" / "README.md").read_text() == "first" and names(tmp_path) == ["export"]
    (tmp_path / "export" / "of before").touch()
    export("third")
    assert (tmp_path / "export" / "README.md").read_text() == "third" and names(tmp_path) == ["export"]
    assert "of before" not in names(tmp_path / "export")


def test_an_older_export_that_cannot_be_removed_is_out_of_the_way(export, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, os.strerror(1))

    export("first")
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    checksums = export("second")
    assert (tmp_path / "export" / "README.md").read_text() == "second"
    assert model_folder.problem(tmp_path / "export", checksums) is None
