"""Recipes: every shipped one loads, and a wrong one is refused with a line that says what to change."""

import pytest
import yaml

from scaler.errors import ScalerError
from scaler.recipe import RECIPES, Recipe, load

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_survives_being_written_and_read(name, tmp_path):
    recipe = load(name)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert recipe.name == name
    assert load(str(tmp_path / "again.yaml")) == recipe


def test_overrides_win_over_the_file_and_the_last_over_the_first():
    recipe = load("quickstart", ["training.steps=7", "optimizer.betas=[0.8, 0.9]", "seed=3", "training.steps=300"])
    assert (recipe.training.steps, recipe.optimizer.betas, recipe.seed) == (300, (0.8, 0.9), 3)
    assert recipe.training.rows == load("quickstart").training.rows


def test_an_override_may_open_a_section_that_the_file_leaves_out(tmp_path):
    content = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    del content["objective"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load(str(tmp_path / "mine.yaml"), ["objective.mask_probability=0.4"]).objective.mask_probability == 0.4


@pytest.mark.parametrize("written, meant", [("5e-5", 5e-5), ("1e-3", 1e-3), ("1", 1.0)])
def test_a_number_is_read_as_people_write_it(written, meant):
    assert load("quickstart", [f"optimizer.learning_rate={written}"]).optimizer.learning_rate == meant


@pytest.mark.parametrize(
    "override, said",
    [
        ("training.stepz=5", "unknown key training.stepz; did you mean 'steps'"),
        ("trainign.steps=5", "unknown key trainign; did you mean 'training'"),
        ("training.steps=many", "training.steps='many', but int is needed"),
        ("training.steps=1.5", "training.steps=1.5, but int is needed"),
        ("training.steps=true", "training.steps=True, but int is needed"),
        ("training.steps=", "training.steps=None, but int is needed"),
        ("training=5", "training is 5, but a mapping"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9, but a list"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9], but 2 values"),
        ("optimizer.betas=[0.9, high]", "optimizer.betas='high', but float"),
        ("initialisation.neighbour_heads=1", "initialisation.neighbour_heads=1, but a list"),
        ("model=roberta", "model='roberta', but dict"),
        ("training.steps", "'training.steps' is no option"),
        ("training.steps.more=5", "steps is a value, not a section"),
        ("training.steps=[5", "the value is not YAML"),
    ],
)
def test_a_malformed_value_is_refused(override, said):
    assert said in refusal("quickstart", override)


@pytest.mark.parametrize(
    "key, value",
    [
        *(("seed", value) for value in (-1, 1 << 63)),
        *(("corpus.text_unit", "page"), ("corpus.heldout_percent", 0), ("corpus.heldout_percent", 50)),
        *(("corpus.part_mib", 0), ("corpus.min_characters", -1), ("tokenizer.vocab_size", 260), ("data.seq_len", 4)),
        *(
            (f"objective.{name}", value)
            for name in ("mask_probability", "heldout_mask_probability")
            for value in (0, 1)
        ),
        *(("optimizer.learning_rate", value) for value in (0, -1e-3, ".nan", ".inf")),
        *(("optimizer.name", "lamb"), ("optimizer.betas", [0.9, 1.0]), ("optimizer.eps", 0)),
        *(("optimizer.weight_decay", -0.1), ("optimizer.momentum", 1.0), ("optimizer.embedding_rate", -1.0)),
        *(("schedule.shape", "circular"), ("schedule.warmup_share", -0.1), ("schedule.warmup_share", 1.5)),
        *(("schedule.floor", 1.5), ("schedule.floor", -0.1)),
        *((f"training.{name}", 0) for name in ("steps", "rows", "max_micro_rows", "log_every", "evaluate_every")),
    ],
)
def test_a_value_out_of_range_is_refused(key, value):
    assert f"recipe: {key}=" in refusal("quickstart", f"{key}={value}")


@pytest.mark.parametrize("section", ["corpus", "optimizer.learning_rate"])
def test_a_missing_section_or_key_is_named(section, tmp_path):
    content = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    *outer, last = section.split(".")
    del (content[outer[0]] if outer else content)[last]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert f"{section} is missing" in refusal(str(tmp_path / "short.yaml"))


@pytest.mark.parametrize("content", [b"a: [1", b"- 1\n- 2\n", b"", b"\xff\xfe\x00"])
def test_a_file_that_is_no_recipe_is_refused(content, tmp_path):
    (tmp_path / "odd.yaml").write_bytes(content)
    assert str(tmp_path / "odd.yaml") in refusal(str(tmp_path / "odd.yaml"))


def test_an_unknown_name_is_refused_with_the_nearest():
    assert "no recipe and no file 'quikstart'" in refusal("quikstart")
    assert "did you mean 'quickstart'" in refusal("quikstart")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(AttributeError):
        load("quickstart").seed = 1


def test_folders_follow_from_the_data_folder():
    recipe: Recipe = load("quickstart", ["data.folder=/x"])
    assert (str(recipe.tokenizer_folder), str(recipe.shards_folder)) == ("/x/tokenizer", "/x/shards")


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(ScalerError) as refused:
        load(name, overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)
