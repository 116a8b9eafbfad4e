"""Whatever bodies a real server is sent: no error of its own, no hang, and at the end both pools are empty."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.e2e.served import Served, serving
from tests.patience import PATIENCE_S
from tests.server.conftest import TEMPLATE
from tests.server.openai.bodies import CALLS, NUM_BODIES
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=256)
    flags = ["--tokenizer", "bytes", "--prefill", "P2", "--decode", "T2", "--max-model-len", "40"]
    flags += ["--num-device-blocks", "300", "--num-host-blocks", "100"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "mistral", "--reasoning-parser", "deepseek_r1"]
    flags += ["--served-model-name", "fake", "--chat-template", TEMPLATE]
    with serving(folder, tmp_path_factory.mktemp("served"), *flags) as served:
        yield served


def test_any_body(served: Served) -> None:
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=served.url, timeout=PATIENCE_S) as client:

        @settings(max_examples=NUM_BODIES, suppress_health_check=[HealthCheck.too_slow])
        @given(call=CALLS)
        def send(call: tuple[str, dict[str, Any]]) -> None:
            path, body = call
            headers = {"content-type": "application/json"}
            response = client.post(path, content=json.dumps(body), headers=headers)
            statuses[response.status_code] += 1
            assert response.status_code in (200, 400, 404), response.text
            assert response.status_code != 200 or '"error":{' not in response.text

        send()
    # How many are valid depends on what else is loaded: Hypothesis tries constants that it finds in modules.
    assert statuses[200] > statuses.total() / 20, statuses
    served.is_drained()
    assert served.end(signal.SIGTERM) == 0
