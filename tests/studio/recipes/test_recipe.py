"""Recipes are data: every mistake is told with its line, and a fingerprint tells what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, OutputError
from packshot.studio.recipes.recipe import SHIPPED, load_recipe
from packshot.studio.recipes.step import Shot

GOOD = """name: shop
version: 3
about: Ours.
steps:
  - step: caption
  - step: render
    with: {steps: 4, guidance: 2.5}
  - step: finish
    with:
      size: 64x96
      sharpen: {radius: 1.0, percent: 20, threshold: 0}
  - step: store
"""


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "shop.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about


def test_a_file_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert [step.name for step in recipe.steps] == ["caption", "render", "finish", "store"]
    assert recipe.needs == {"engine", "store"}
    facts = recipe.facts()
    assert (facts["name"], facts["version"]) == ("shop", 3)
    assert facts["steps"][1]["with"]["guidance"] == 2.5
    assert facts["steps"][2]["with"]["sharpen"] == {"radius": 1.0, "percent": 20, "threshold": 0}


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("  - step: render", "  - step: rendr", "line 6: steps[1]: unknown step 'rendr'.*'render'"),
        ("guidance: 2.5", "guidence: 2.5", "line 7: render: unknown key 'guidence'.*'guidance'"),
        ("guidance: 2.5", "guidance: much", "line 7: render.guidance: expected a finite number"),
        ("guidance: 2.5", "guidance: 500", "line 7: render: guidance"),
        ("size: 64x96", "size: 63x96", "line 10: finish: size '63x96': 63 is out of range"),
        ("radius: 1.0", "radios: 1.0", "line 11: finish.sharpen: unknown key 'radios'"),
        ("steps: 4", "steps: env.STEPS", "line 7: render.steps: expected a whole number"),
        ("  - step: caption\n", "", "the step render needs a caption.*caption"),
        ("version: 3", "versoin: 3", "line 2: unknown section 'versoin'"),
        ("version: 3\n", "", "version must be given"),
        ("name: shop", "name: a shop", "name is 'a shop', expected up to 48 letters"),
        ("about: Ours.", "variants: {seeds: 0}", "line 3: variants: seeds is 0"),
        ("about: Ours.", "variants: {seeds: 9, sizes: [64, 96, 64]}", "the size '64' is there tw"),
        ("about: Ours.", "variants: {seeds: 65}", "65 variants of each item"),
        ("  - step: store", "  - with: {}", "line 12: steps[3]: step must be given"),
        ("  - step: store", "  - step: store\n    mit: 1", "line 13: steps[3]: unknown key 'mit'"),
        (
            "  - step: store",
            "  - step: store\n    with: {to: x}",
            "line 13: store: 'to' is not tak",
        ),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path, line, instead, said) -> None:
    assert line in GOOD
    with pytest.raises(InvalidRequest, match=said.replace("[", r"\[")):
        load_recipe(write(tmp_path, GOOD.replace(line, instead)))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"unknown recipe 'backgruond'. Did you mean 'backgr"):
        load_recipe("backgruond")
    with pytest.raises(OutputError, match=r"cannot read .*none\.yaml"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_nothing_of_the_environment_comes_into_a_recipe(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    (tmp_path / "key").write_text("s3cret")
    for reference in ("env.TOKEN", "${TOKEN}", "file:key"):
        recipe = load_recipe(write(tmp_path, GOOD.replace("steps: 4", f'negative: "{reference}"')))
        assert recipe.facts()["steps"][1]["with"]["negative"] == reference


def test_parameters_of_one_item(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    changed = recipe.changed({"render.steps": "8", "finish.format": "jpeg"})
    assert changed.steps[1].steps == 8
    assert changed.steps[2].format == "jpeg"
    assert changed.steps[2].size == "64x96"
    assert recipe.changed({}) is recipe
    with pytest.raises(InvalidRequest, match=r"unknown step of the recipe shop 'rendr'.*'render'"):
        recipe.changed({"rendr.steps": 8})
    with pytest.raises(InvalidRequest, match=r"unknown parameter of the step render 'step'.*'st"):
        recipe.changed({"render.step": 8})
    with pytest.raises(InvalidRequest, match="the step render: Expected `int`"):
        recipe.changed({"render.steps": "many"})
    with pytest.raises(InvalidRequest, match="steps is 0"):
        recipe.changed({"render.steps": 0})


def test_a_fingerprint_changes_from_the_changed_step_on(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    given = {"brief": "a mug", "seed": 7}
    before = [recipe.fingerprint(given, k) for k in range(4)]
    assert len(set(before)) == 4
    other = recipe.changed({"finish.quality": 90})
    after = [other.fingerprint(given, k) for k in range(4)]
    assert after[:2] == before[:2]
    assert set(after[2:]).isdisjoint(before)
    assert recipe.fingerprint({"seed": 7, "brief": "a mug"}) == before[-1]
    assert recipe.fingerprint({"seed": 8, "brief": "a mug"}) != before[-1]
    with_model = [recipe.fingerprint(given, k, "m" * 64) for k in range(4)]
    assert with_model[0] == before[0]
    assert set(with_model[1:]).isdisjoint(before)


CHANGES = {
    "background.attempts": 4,
    "background.steps": 21,
    "caption.raw": True,
    "finish.max_side": 512,
    "finish.quality": 91,
    "render.guidance": 2.0,
    "white.size": "128x128",
}


@given(
    name=st.sampled_from(SHIPPED),
    changed=st.sampled_from(sorted(CHANGES)),
    model=st.sampled_from(["", "m" * 64]),
    item=st.dictionaries(st.sampled_from(["brief", "photo", "size"]), st.text(max_size=9)),
)
def test_what_is_done_again_is_the_changed_step_and_what_follows(
    name, changed, model, item
) -> None:
    recipe = load_recipe(name)
    names = [step.name for step in recipe.steps]
    step = changed.partition(".")[0]
    if step not in names:
        return
    other = recipe.changed({changed: CHANGES[changed]})
    for k in range(len(names)):
        same = recipe.fingerprint(item, k, model) == other.fingerprint(item, k, model)
        assert same == (k < names.index(step))
        renders = any("engine" in each.needs for each in recipe.steps[: k + 1])
        of_another = recipe.fingerprint(item, k, "another model")
        assert (of_another != recipe.fingerprint(item, k, model)) == renders
        assert recipe.fingerprint({**item, "seed": 8}, k) != recipe.fingerprint(item, k)


def test_variants_of_an_item(tmp_path: Path) -> None:
    text = GOOD.replace(
        "about: Ours.", "variants: {seeds: 2, sizes: [64, 96x64], grounds: [on slate, on moss]}"
    )
    recipe = load_recipe(write(tmp_path, text))
    shots = recipe.shots(Shot("mug", "r", "a red mug", 7))
    assert len(shots) == recipe.variants.count == 8
    assert [shot.id for shot in shots] == [f"mug-{k}" for k in range(1, 9)]
    assert len({(shot.brief, shot.size, shot.seed) for shot in shots}) == 8
    assert (shots[0].brief, shots[0].size, shots[0].seed) == ("a red mug, on slate", "64", 7)
    (only,) = replace(recipe, variants=load_recipe("text").variants).shots(Shot("a", "r", "b", 1))
    assert only.id == "a"
