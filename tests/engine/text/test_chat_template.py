"""Chat templates: where they come from, and how their rendering ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seesaw.engine.text.chat_template import ChatTemplate
from seesaw.engine.text.template_source import read_template
from seesaw.engine.text.tokenizer import ByteTokenizer
from seesaw.engine.values.errors import ConfigError, RequestError

USER = {"role": "user", "content": "hi"}


def test_a_template_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ 1 }}")
    assert read_template(str(path)) == read_template("{{ 1 }}") == "{{ 1 }}"
    assert read_template("") is None
    for wrong in (tmp_path / "other", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the chat template"):
            read_template(str(wrong))


def test_the_operators_template_must_be_jinja(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    for wrong in ("a\n{% if %}", "a\n{{ 1|unheard_of }}", "a\n{% generation %}"):
        path.write_text(wrong)
        for choice in (wrong, str(path)):
            with pytest.raises(ConfigError, match="line 2"):
                read_template(choice)
    with pytest.raises(ConfigError, match="cannot be compiled"):
        read_template("{% break %}")
    loop, marked = "{% for m in x %}{% break %}{% endfor %}", "{% generation %}{{ x|tojson }}{% endgeneration %}"
    for fine in ("{{ raise_exception('no') }}", loop, marked):
        assert read_template(fine) == fine


def test_tools_that_a_template_does_not_read_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    ChatTemplate(ByteTokenizer(), "mute {{ messages[0].content }}").render([USER])
    assert not caplog.records
    for template in ("deaf {{ messages[0].content }}", "{{ tools[0].function.name }}"):
        renderer = ChatTemplate(ByteTokenizer(), template)
        renderer.render([USER], tools=tools)
        renderer.render([USER], tools=tools)
        assert caplog.text.count("does not read any") == template.startswith("deaf")
        caplog.clear()


def test_templates_are_sandboxed() -> None:
    for attack in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% include '/etc/passwd' %}"):
        with pytest.raises(RequestError, match="cannot render"):
            ChatTemplate(ByteTokenizer(), attack).render([USER])


def hf_tokenizer(template: Any) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({"<s>": 0}, "<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    tokenizer.chat_template = template
    return SimpleNamespace(chat_renderer=tokenizer)


def test_the_checkpoints_own_template_knows_its_special_tokens_and_the_operators_wins() -> None:
    tokenizer = hf_tokenizer("{{ bos_token }}{{ messages[0].content }}")
    assert ChatTemplate(tokenizer).render([USER]) == "<s>hi"
    assert ChatTemplate(tokenizer, "{{ messages[0].role }}").render([USER]) == "user"
    assert ChatTemplate(tokenizer, "{{ messages[0].role }}").render([USER], template="{{ 2 }}") == "2"


def test_a_checkpoint_may_have_a_template_for_tools() -> None:
    template = ChatTemplate(hf_tokenizer({"default": "plain", "tool_use": "{{ tools[0].function.name }}"}))
    tool = {"type": "function", "function": {"name": "f"}}
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[tool]) == "f"


def test_two_threads_may_be_the_first_to_render() -> None:
    """One of them found only half of transformers: a fresh server's first chats got a 500."""
    program = (
        "import sys, threading\n"
        "from engine.text.chat_template import ChatTemplate\n"
        "from engine.text.tokenizer import ByteTokenizer\n"
        "sys.setswitchinterval(1e-6)\n"
        "template = ChatTemplate(ByteTokenizer(), '{{ messages[0].content }}')\n"
        "render = lambda: print(template.render([{'role': 'user', 'content': 'hi'}]), end='')\n"
        "threads = [threading.Thread(target=render) for _ in range(4)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("hi" * 4, 0), done.stderr
