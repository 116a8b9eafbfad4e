"""Every configuration that ships is valid, names its origin, and runs on a simulated host without a checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import document_config
import jsonschema
import pytest

from seesaw.engine.bench.offline import run_workloads
from seesaw.engine.bench.workload import Job, read_lengths
from seesaw.engine.values.errors import ConfigError
from seesaw.server.settings import HINTS, read_configs

CONFIGS = document_config.config_files()
SCHEMA = json.loads(document_config.SCHEMA_PATH.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(path):
    raw = json.loads(path.read_text())
    jsonschema.validate(raw, SCHEMA)
    assert raw["$schema"] == "./schema.json" and raw["$comment"]
    config, _ = read_configs({"config": str(path)})
    assert "/" in config.model and (Path(config.shape) / "config.json").is_file()
    [result] = run_workloads(
        replace(config, executor="simulated", policy="paper", surge_min_tokens=0), [[Job(1500, 8)] * 12]
    )
    assert result.stats.generation_tokens == 12 * 8
    assert bool(result.stats.transitions) == (not config.plan.is_static)


def test_the_artifacts_experiment_keeps_its_meaning():
    config, _ = read_configs({"config": str(document_config.CONFIGS / "llama2-7b-2xl4.json")})
    assert (str(config.plan), config.block_size, config.max_num_batched_tokens) == ("P2->T2", 16, 4096)
    assert (config.num_device_blocks, config.num_host_blocks * config.block_size) == (500, 20_000)


@pytest.mark.parametrize(
    ("name", "prompt", "output", "longest"), [("sharegpt", 248, 227, 2048), ("arxiv", 2557, 316, 4096)]
)
def test_the_lengths_are_those_of_their_data_set(name, prompt, output, longest):
    jobs = read_lengths(document_config.CONFIGS / "lengths" / f"{name}.csv", 2000)
    assert round(mean(job.prompt_tokens for job in jobs)) == prompt
    assert round(mean(job.output_tokens for job in jobs)) == output
    assert max(job.prompt_tokens + job.output_tokens for job in jobs) <= longest
    assert f"{prompt} / {output}" in (document_config.CONFIGS / "lengths" / "README.md").read_text()


def test_the_schema_refuses_what_the_loader_refuses():
    for wrong in ({"prefil": "P4"}, {"port": "x"}, {"port": True}, {"dtype": "int3"}, {"host_kv_bytes": "4 apples"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)
    for right in ({"host_kv_bytes": "1.5 GB"}, {"host_kv_bytes": 5}, {"api_key": ["a", "b"]}, {"max_stall_s": 2}):
        jsonschema.validate(right, SCHEMA)


ODD = [None, True, 0, 1, 2.0, 2.5, "", "1", "true", "no", "4GiB", "auto", [], ["a"], [1], {}]


@pytest.mark.parametrize("name", HINTS)
def test_the_schema_and_the_loader_agree_on_every_type(name, tmp_path):
    for value in ODD:
        path = tmp_path / "x.json"
        path.write_text(json.dumps({"model": "m", name: value}))
        try:
            read_configs({"config": str(path)})
            loads = True
        except ConfigError as error:
            if f"{name} in {path} must be" not in str(error):
                continue  # of the right type, and out of bounds: the schema knows none
            loads = False
        assert jsonschema.Draft202012Validator(SCHEMA).is_valid({name: value}) == loads, value


@pytest.mark.parametrize("name", ["SCHEMA_PATH", "PAGE_PATH"])
def test_what_is_generated_is_up_to_date(name):
    text = {"SCHEMA_PATH": document_config.schema, "PAGE_PATH": document_config.page}[name]()
    assert getattr(document_config, name).read_text() == text, "run scripts/document_config.py"
