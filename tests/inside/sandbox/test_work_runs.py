"""What correct learner code does runs under the whole sandbox without a grant."""

from __future__ import annotations

import io
import json
import random
import sqlite3
import tempfile

import pytest


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Libraries are imported before the fork, as in a template; not sooner, so that other tests fork cheaply."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(1, 1)
    layer(torch.ones(1)).backward()
    torch.optim.AdamW(layer.parameters()).step()


def training_step():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.save(model.state_dict(), "model.pt")
    model.load_state_dict(torch.load("model.pt"))
    return losses[-1] < losses[0]


def linear_algebra():
    import numpy as np

    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 200))
    u, s, vt = np.linalg.svd(a)
    np.save("a.npy", a)
    mapped = np.load("a.npy", mmap_mode="r")
    return bool(np.allclose((u * s) @ vt, mapped))


def files():
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/x.json", "w") as file:
        json.dump({"seed": random.random()}, file)
    with sqlite3.connect("votes.sqlite") as db:
        db.execute("create table vote (choice)")
        db.execute("insert into vote values ('a')")
        return db.execute("select count(*) from vote").fetchone()[0]


@pytest.mark.parametrize("work", [training_step, linear_algebra, files])
def test_runs(ground, libraries, work):
    trial = ground.run(work)
    assert trial.error is None and trial.value, trial


def test_a_figure_can_be_drawn(ground, libraries):
    pyplot = pytest.importorskip("matplotlib.pyplot")

    def figure():
        fig, axes = pyplot.subplots()
        axes.plot([1, 2, 3])
        fig.savefig("figure.png")
        with open("figure.png", "rb") as file:
            return file.read(4) == b"\x89PNG"

    pyplot.figure().savefig(io.BytesIO())  # fonts and backend are found before the fork, as in a template
    trial = ground.run(figure)
    assert trial.error is None and trial.value, trial


def test_every_layer_stands_where_the_host_has_it(ground):
    entered = ground.run(lambda: None).entered
    assert not set(entered.layers) & set(entered.missing)
    assert {"close_range", "session", "rlimit", "seccomp"} <= set(entered.layers)


def test_isolation_process_is_descriptors_session_and_limits(ground):
    entered = ground.run(lambda: None, isolation="process").entered
    assert entered.layers == ["close_range", "session", "rlimit"]
    assert entered.missing["seccomp"] == "isolation=process"
