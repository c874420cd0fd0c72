"""Recipes: every shipped one loads, and a wrong one is refused with a line that says what to change."""

import json
from dataclasses import replace

import pytest
import yaml
from refusals import error_of

from scaler.config import recipe
from scaler.config.data_sections import Cleaning, Dedup, Source, Word2Vec
from scaler.config.recipe import RECIPES, Recipe, load, section
from scaler.core.errors import ScalerError

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


def test_the_share_of_masks_goes_in_a_line_or_stays():
    recipe = load("quickstart", ["objective.mask_probability=0.5", "objective.final_mask_probability=0.25"])
    assert [recipe.masked_per_row(done) for done in (0.0, 0.25, 0.5, 1.0)] == [64, 56, 48, 32]
    assert recipe.most_masked_per_row == 64
    rising = load("quickstart", ["objective.mask_probability=0.125", "objective.final_mask_probability=0.25"])
    assert (rising.masked_per_row(0.5), rising.most_masked_per_row) == (24, 32)
    fixed = load("quickstart", ["objective.mask_probability=0.25", "objective.final_mask_probability=null"])
    assert {fixed.masked_per_row(done) for done in (0.0, 0.5, 1.0)} == {32}


@pytest.mark.parametrize("written, meant", [("5e-5", 5e-5), ("1e-3", 1e-3), ("1", 1.0)])
def test_a_number_is_read_as_people_write_it(written, meant):
    assert load("quickstart", [f"optimizer.learning_rate={written}"]).optimizer.learning_rate == meant


@pytest.mark.parametrize(
    "override, message",
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
        ("corpus.sources=my/texts", "corpus.sources='my/texts', but a list"),
        ("corpus.sources=[5]", "corpus.sources is 5, but a mapping"),
        ("corpus.sources=[{sauce: a}]", "unknown key corpus.sources.sauce; did you mean 'source'"),
        ("corpus.sources=[{weight: 1}]", "corpus.sources.source is missing"),
        ("corpus.sources=[{source: a, weight: heavy}]", "corpus.sources.weight='heavy', but float"),
        ("corpus.sources=[{source: a, text_field: 5}]", "corpus.sources.text_field=5, but str"),
        ("corpus.source=my/texts", "unknown key corpus.source; did you mean 'sources'"),
        ("corpus.sources.weight=2", "sources is a value, not a section"),
        ("cleaning.languages=en", "cleaning.languages='en', but a list"),
        ("cleaning.languages=[en, no]", "cleaning.languages=False, but str"),
        ("cleaning.c4=1", "cleaning.c4=1, but bool"),
        ("dedup.exact=often", "dedup.exact='often', but bool"),
        ("training.steps", "'training.steps' is no option"),
        ("=5", "'=5' is no option"),
        ("training..steps=5", "'training..steps=5' is no option"),
        ("training.steps=" + "[" * 2000, "the value is not YAML"),
        ("optimizer.learning_rate=1" + "0" * 400, "optimizer.learning_rate="),
        ("training.steps.more=5", "steps is a value, not a section"),
        ("training.steps=[5", "the value is not YAML"),
    ],
)
def test_a_malformed_value_is_refused(override, message):
    assert message in refusal("quickstart", override)


@pytest.mark.parametrize(
    "key, value",
    [
        *(("seed", value) for value in (-1, 1 << 63)),
        *(("corpus.heldout_percent", 0), ("corpus.heldout_percent", 50)),
        *(("corpus.test_percent", -1), ("corpus.test_percent", 50), ("corpus.test_percent", ".nan")),
        *(("corpus.part_mib", 0), ("corpus.max_document_mib", 0), ("corpus.sources", []), ("corpus.tokens", 0)),
        *(("cleaning.normalise", form) for form in ("nfc", "NFX", "''")),
        *(("cleaning.languages", codes) for codes in (["english"], ["EN"], ["en", "e"], ["en-GB"])),
        *(("cleaning.language_confidence", share) for share in (-0.1, 1.1, ".nan")),
        *(("cleaning.min_characters", 0), ("cleaning.min_characters", -1), ("cleaning.max_characters", 99)),
        *((f"dedup.{name}", 0) for name in ("ngram", "bands", "band_rows")),
        *(("dedup.bands", 257), ("dedup.band_rows", 257), ("dedup.ngram", 1001), ("data.seq_len", 4)),
        *(("tokenizer.vocab_size", 260), ("tokenizer.vocab_size", 1 << 63), ("tokenizer.sample_mib", 0)),
        *((f"word2vec.{name}", 10**10) for name in ("vector_size", "window", "negative", "epochs", "min_count")),
        *((f"word2vec.{name}", 1.5) for name in ("learning_rate", "min_learning_rate")),
        *(
            (f"objective.{name}", value)
            for name in ("mask_probability", "final_mask_probability", "heldout_mask_probability")
            for value in (0, 1)
        ),
        *(("optimizer.learning_rate", value) for value in (0, -1e-3, ".nan", ".inf")),
        *(("optimizer.name", "lamb"), ("optimizer.betas", [0.9, 1.0]), ("optimizer.eps", 0)),
        *(("optimizer.weight_decay", -0.1), ("optimizer.momentum", 1.0), ("optimizer.embedding_rate", -1.0)),
        *(("schedule.shape", "circular"), ("schedule.warmup_share", -0.1), ("schedule.warmup_share", 1.5)),
        *((f"word2vec.{name}", 0) for name in ("window", "negative", "epochs", "min_count", "learning_rate")),
        *(("word2vec.vector_size", 0), ("word2vec.architecture", "glove"), ("word2vec.ready_made", "a.pkl")),
        *(("word2vec.sample", value) for value in (-0.1, 1.0, ".nan")),
        *(("word2vec.min_learning_rate", value) for value in (0, -1, 0.1, ".nan")),
        *(("schedule.floor", 1.5), ("schedule.floor", -0.1)),
        *((f"training.{name}", 0) for name in ("steps", "rows", "max_micro_rows", "log_every", "evaluate_every")),
    ],
)
def test_a_value_out_of_range_is_refused(key, value):
    whole = ["word2vec.vector_size=8"] if key.startswith("word2vec.") else []  # a section that the recipe lacks
    assert f"recipe: {key}=" in refusal("quickstart", *whole, f"{key}={value}")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{source: a, text_unit: page}]", "text_unit='page', but it is one of paragraph, line, file"),
        *(
            (f"[{{source: a, name: {name}}}]", f"name='{name}', but it is made of letters, digits and _")
            for name in ("a-b", "a b", "a/b", "a.b")
        ),
        *(
            (f"[{{source: a, {key}: {written}}}]", f"{key}={meant}, but it is above 0, and finite")
            for key in ("weight", "epochs", "max_mib")
            for written, meant in (("0", 0.0), ("-1", -1.0), (".inf", "inf"), (".nan", "nan"))
        ),
        ("[{source: a, weight: 1, epochs: 2}]", "epochs=2.0, but a source has a weight or epochs"),
        ("[a, b, x/a.txt]", "corpus.sources='a', but each has a name of its own; set `name`"),
        ("[a, {source: b, name: a}]", "corpus.sources='a', but each has a name of its own"),
        ("[{source: a, weight: 1}, b, c]", "corpus.sources='b, c', but all have a weight where one has"),
        ("[{source: a, weight: 1}, {source: b, epochs: 2}]", "corpus.sources='b', but all have a weight"),
    ],
)
def test_sources_that_make_no_mix_are_refused(sources, message):
    message = message if message.startswith("corpus.") else f"corpus.sources.{message}"
    assert f"recipe: {message}" in refusal("quickstart", f"corpus.sources={sources}")


def test_tokens_in_all_are_refused_without_weights():
    for sources in ("[a, b]", "[{source: a, epochs: 2}]"):
        message = refusal("quickstart", f"corpus.sources={sources}", "corpus.tokens=1000")
        assert message == "recipe: corpus.tokens=1000, but it goes with sources of weights"
    weighted = load("quickstart", ["corpus.sources=[{source: a, weight: 1}]", "corpus.tokens=1000"])
    assert weighted.corpus.tokens == 1000


@pytest.mark.parametrize(
    "written", ["my/texts", "{source: my/texts}", "{source: my/texts, name: texts}", "{source: my/texts, weight: null}"]
)
def test_a_plain_string_is_a_source(written):
    assert load("quickstart", [f"corpus.sources=[{written}]"]).corpus.sources == (Source("my/texts", name="texts"),)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *(("aws-docs", "aws_docs"), ("allenai/c4", "c4"), ("/a/b/part-01.jsonl.gz", "part_01"), ("texts/", "texts")),
        *((".", "source"), ("..", "source"), ("/", "source"), ("my.d/.hidden", "source")),
        *(("my/*.jsonl", "my"), ("*.txt", "source"), ("a/my.texts/[0-9]/?.txt", "my")),
    ],
)
def test_a_source_is_named_after_the_last_part_of_where_it_lies(source, name):
    assert Source(source).name == name


def test_a_mix_survives_being_written_and_read(tmp_path):
    mixed = "[{source: a/b.txt, weight: 2}, {source: c, name: other, weight: 1, id_field: meta.id}]"
    recipe = load("quickstart", [f"corpus.sources={mixed}", "cleaning.languages=[en, de]", "dedup.near=false"])
    assert [source.weight for source in recipe.corpus.sources] == [2.0, 1.0]
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(str(tmp_path / "again.yaml"), ["name=quickstart"]) == recipe


def test_an_optional_section_is_off_until_something_is_set_in_it(tmp_path):
    recipe = load("quickstart")
    assert recipe.word2vec is None
    (tmp_path / "quickstart.yaml").write_text(recipe.to_yaml(), encoding="utf-8")  # says `word2vec: null`
    file = str(tmp_path / "quickstart.yaml")
    on = load(file, ["word2vec.vector_size=8", "word2vec.sample=1e-5"])
    assert on.word2vec == Word2Vec(8, sample=1e-5)
    assert on.word2vec_folder.name == "word2vec"
    (tmp_path / "quickstart.yaml").write_text(on.to_yaml(), encoding="utf-8")
    assert load(file) == on
    assert load(file, ["word2vec=null"]) == recipe
    missing = "recipe: word2vec.vector_size is missing; give a value as section.key=value"
    assert refusal("quickstart", "word2vec.window=3") == missing
    assert refusal("quickstart", "word2vec=768") == "recipe: word2vec is 768, but a mapping of keys is needed"


def test_cleaning_is_off_and_deduplication_on_unless_the_recipe_says_otherwise(tmp_path):
    content = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    content = {name: part for name, part in content.items() if name not in ("cleaning", "dedup")}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = load(str(tmp_path / "plain.yaml"))
    assert recipe.cleaning == Cleaning()
    assert not any(value for value in vars(recipe.cleaning).values() if value is True)
    assert (recipe.dedup.exact, recipe.dedup.near) == (True, True)


@pytest.mark.parametrize("most", [100, 101])
def test_the_longest_document_may_be_as_long_as_the_shortest(most):
    assert load("quickstart", [f"cleaning.max_characters={most}"]).cleaning.min_characters == 100


def test_a_section_alone_is_made_of_its_settings():
    assert section(Dedup, "dedup", []) == Dedup()
    assert section(Cleaning, "cleaning", ["languages=[en, de]", "c4=true"]) == Cleaning(languages=("en", "de"), c4=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("language=[en]", "recipe: unknown key cleaning.language; did you mean 'languages'"),
        ("c4=7", "recipe: cleaning.c4=7, but bool"),
        ("normalise=NFX", "recipe: cleaning.normalise='NFX', but it is one of"),
        ("c4", "'c4' is no option"),
    ],
)
def test_a_section_alone_is_as_strict_as_a_recipe(setting, message):
    assert message in error_of(section, Cleaning, "cleaning", [setting])


@pytest.mark.parametrize("where", ["corpus", "corpus.sources", "optimizer.learning_rate"])
def test_a_missing_section_or_key_is_named(where, tmp_path):
    content = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    *outer, last = where.split(".")
    del (content[outer[0]] if outer else content)[last]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert f"{where} is missing" in refusal(str(tmp_path / "short.yaml"))


def test_all_missing_keys_are_named_at_once_with_the_file_that_lacks_them(tmp_path):
    content = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    del content["corpus"], content["optimizer"]["learning_rate"], content["training"]["rows"]
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    expected = (
        "recipe: corpus, optimizer.learning_rate and training.rows are missing; "
        f"add them to {file}, or give section.key=value"
    )
    assert refusal(str(file)) == expected


def test_several_problems_are_one_line():
    message = refusal("quickstart", "training.stepz=5", "optimizer.eps=0", "dedup.bands=300", "schedule.shape=wavy")
    assert message == (
        "recipe: unknown key training.stepz; did you mean 'steps'?; optimizer.eps=0.0, but it is above 0, and finite; "
        "schedule.shape='wavy', but it is one of linear, cosine, constant, sqrt; dedup.bands=300, but it is between 1 "
        "and 256"
    )
    many = [f"training.{name}=0" for name in ("steps", "rows", "max_micro_rows", "log_every", "evaluate_every")]
    assert refusal("quickstart", *many, "seed=-1", "dedup.ngram=0").endswith("; and 2 more")


def test_a_misspelt_key_is_not_missing_as_well(tmp_path):
    text = (RECIPES / "quickstart.yaml").read_text(encoding="utf-8").replace("learning_rate:", "learning_rat:")
    (tmp_path / "typo.yaml").write_text(text, encoding="utf-8")
    message = "recipe: unknown key optimizer.learning_rat; did you mean 'learning_rate'?"
    assert refusal(str(tmp_path / "typo.yaml")) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: replace(recipe.optimizer, learning_rate=0.0), "optimizer.learning_rate=0.0, but it is above 0"),
        (lambda recipe: replace(recipe.training, rows=True), "training.rows=True, but int is needed"),
        (lambda recipe: replace(recipe.corpus, sources=()), "corpus.sources=(), but there is at least one"),
        (lambda recipe: replace(recipe, seed=-1), "seed=-1, but it is between 0 and 9223372036854775807"),
        (lambda recipe: Source("a", weight=-1), "corpus.sources.weight=-1.0, but it is above 0, and finite"),
        (lambda recipe: Word2Vec(8, min_learning_rate=1), "word2vec.min_learning_rate=1.0, but it is above 0 and at"),
        (lambda recipe: Dedup(bandz=3), "unknown key dedup.bandz; did you mean 'bands'?"),
    ],
)
def test_a_recipe_made_or_changed_by_code_is_checked_as_well(change, message):
    assert error_of(change, load("quickstart")).startswith(f"recipe: {message}")


def test_a_date_is_a_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: 2026-11-30\n", encoding="utf-8")
    assert load(str(tmp_path / "mine.yaml")).name == "2026-11-30"


@pytest.mark.parametrize("text", ["extends: quickstart\nmodel: &a {b: *a}\n", "extends: quickstart\n2026-11-30: 5\n"])
def test_a_mapping_that_json_cannot_hold_is_refused(text, tmp_path):
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    assert "keys that are no words, or contains itself" in refusal(str(tmp_path / "odd.yaml"))


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
    recipe: Recipe = load("quickstart", ["data.folder=/x", "data.seq_len=64"])
    assert (str(recipe.tokenizer_folder), str(recipe.rows_folder)) == ("/x/tokenizer", "/x/rows-64")


def refusal(name: str, *overrides: str) -> str:
    return error_of(load, name, overrides)


# ---- recipes that extend others


def written(folder, name, text):
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


def test_a_recipe_takes_what_it_does_not_say_from_the_one_it_extends(tmp_path):
    base = load("quickstart")
    middle = written(tmp_path, "middle", "extends: quickstart\ntraining: {steps: 7}\nname: called\n")
    mine = load(written(tmp_path, "mine", f"extends: {middle}\ntraining: {{rows: 3}}\ncorpus: {{sources: [a.txt]}}\n"))
    assert (mine.name, load(middle).name) == ("mine", "called")
    assert (mine.training.steps, mine.training.rows) == (7, 3)
    assert mine.training.log_every == base.training.log_every and mine.optimizer == base.optimizer
    assert [source.source for source in mine.corpus.sources] == ["a.txt"]
    assert load(written(tmp_path, "again", mine.to_yaml())) == mine  # whole, as a run's folder has it


def test_a_file_beside_the_recipe_is_the_one_that_it_extends(tmp_path, monkeypatch):
    written(tmp_path, "base", "extends: quickstart\nseed: 5\n")
    mine = written(tmp_path, "mine", "extends: base.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(mine).seed == 5


def test_another_type_of_model_takes_no_keys_of_the_one_before(tmp_path):
    mine = load(written(tmp_path, "mine", "extends: quickstart\nmodel: {model_type: distilbert, dim: 64}\n"))
    assert dict(mine.model) == {"model_type": "distilbert", "dim": 64}
    with pytest.raises(ScalerError, match="model"):
        load(written(tmp_path, "number", "extends: quickstart\nmodel: 5\n"))
    same = load(written(tmp_path, "same", "extends: quickstart\nmodel: {hidden_size: 64}\n"))
    assert same.model["hidden_size"] == 64 and same.model["model_type"] == "roberta"


def test_recipes_that_extend_each_other_or_nothing_are_refused(tmp_path):
    other = tmp_path / "other.yaml"
    mine = written(tmp_path, "mine", f"extends: {other}\n")
    with pytest.raises(ScalerError, match=r"no recipe and no file .*other.yaml"):
        load(mine)
    other.write_text(f"extends: {mine}\n")
    with pytest.raises(
        ScalerError, match=r"other.yaml: extends .*mine.yaml, which extends it; take one of the two out"
    ):
        load(mine)


def test_text_may_lie_elsewhere():
    recipe = load("quickstart", ["data.folder=/x", "data.text_folder=/y"])
    assert (str(recipe.text_folder), str(recipe.tokenizer_folder)) == ("/y", "/x/tokenizer")
    assert str(load("quickstart", ["data.folder=/x"]).text_folder) == "/x"


def test_recipes_of_before_compare_equal_where_only_data_preparation_has_new_keys():
    now = load("quickstart").to_plain()
    before = json.loads(json.dumps(now))
    del before["corpus"]["unusable_percent"]
    before["corpus"]["sources"][0]["text_unit"] = "paragraph"
    assert recipe.compared(before) == recipe.compared(now)
    before["corpus"]["heldout_percent"] = 2.0
    assert recipe.compared(before) != recipe.compared(now)
