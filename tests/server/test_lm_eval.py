"""EleutherAI's lm-evaluation-harness runs multiple choice through /v1/completions, and finds what
`Engine.score` says."""

import json

import pytest
from fake_engine import settle
from serving import serving

from gptoss.server.api import app as server

QUESTIONS = [
    ("Once upon a", [" time", " table", " the"], 0),
    ("The cat sat on", [" the mat.", " mat the.", " ate"], 0),
    ("She was very", [" happy", " purple seven", " on"], 1),
    ("Tom and", [" Lily went to the park", "é日", " x"], 2),
    ("One day", [", a little girl", " day day day day", "!"], 0),
]
TASK = """
task: told
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: "{{{{right}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def harness():
    for needed in ("tenacity", "aiohttp", "requests", "datasets"):
        pytest.importorskip(needed)
    return pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def address(engine):
    with serving(server.create_app(engine, server.ServerOptions("nano"))) as address:
        yield address
    settle(engine)


@pytest.fixture
def tasks(harness, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    data = tmp_path / "questions.jsonl"
    rows = [dict(zip(("start", "ends", "right"), each, strict=True)) for each in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "told.yaml").write_text(TASK.format(data=data))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.parametrize(
    "more", [{}, {"batch_size": 4}, {"num_concurrent": 3}], ids=["one", "batches", "concurrent"]
)
def test_multiple_choice_is_what_the_engine_scores(harness, address, engine, tasks, more):
    arguments = {
        "model": "nano",
        "base_url": f"{address}/v1/completions",
        "tokenizer_backend": "remote",
        "max_length": engine.config.context_length,
        **more,
    }
    found = harness.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=["told"],
        task_manager=tasks,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"]["told"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS)
    right = []
    for sample, (start, ends, answer) in zip(samples, QUESTIONS, strict=True):
        before = engine.tokenizer.encode(start)
        # The harness splits both texts together.
        whole = [engine.tokenizer.encode(start + end) for end in ends]
        scores = [engine.score(ids[: len(before)], ids[len(before) :]) for ids in whole]
        told = [float(logprob) for ((logprob, _),) in sample["resps"]]
        assert told == pytest.approx([score.total for score in scores], rel=1e-5)
        greedy = [is_greedy for ((_, is_greedy),) in sample["resps"]]
        assert [str(each) for each in greedy] == [str(score.is_greedy) for score in scores]
        best = max(range(len(ends)), key=lambda i: scores[i].total)
        right.append(best == answer)
    assert found["results"]["told"]["acc,none"] == pytest.approx(sum(right) / len(right))
