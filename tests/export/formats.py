"""Chat formats for the tests: a short Jinja template of each kind, and what one conversation must look like.

The templates are written for these tests; they do what the published templates of their family do with plain
conversations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ewq_gguf.export.chat_sandbox import Message

TALK = (
    Message("system", "Be brief."),
    Message("user", "Hi!"),
    Message("assistant", "Hello."),
    Message("user", "Why?"),
)
TODAY = "2024-07-26"


@dataclass(frozen=True)
class Format:
    """A template, its tokens, and the text of `TALK` with an answer to come; `expected` has no implied BOS."""

    jinja: str
    expected: str
    name: str | None
    tokens: dict[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>"})
    implied_bos: str = ""
    n_checks: int = 6


_EACH = "{% for m in messages %}"
_CHATML = (
    _EACH + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_TALK = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
)
_LLAMA_3 = (
    "{{ bos_token }}"
    + _EACH
    + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA_3_TAIL = (
    "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
_GEMMA_TURNS = (
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_SPLIT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set first = messages[0].content + '\n\n' %}"
    "{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}"
)
_DEEPSEEK = (
    "{% set ns = namespace(system='') %}"
    + _EACH
    + "{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ bos_token }}{{ ns.system }}" + _EACH + "{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>THINK{% endif %}"
)
_DEEPSEEK_TOKENS = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
_DEEPSEEK_TALK = (
    "Be brief.<｜User｜>Hi!<｜Assistant｜>Hello.<｜end▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>"
)

FORMATS = {
    "chatml": Format(_CHATML, _CHATML_TALK, "ChatML"),
    "qwen 2.5": Format(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        + _CHATML,
        _CHATML_TALK,
        "ChatML",
    ),
    "qwen 3": Format(
        _CHATML.replace(
            "{% endif %}",
            "{% if enable_thinking is defined and enable_thinking is false %}"
            "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        ),
        _CHATML_TALK,
        "ChatML",
        n_checks=18,
    ),
    "llama 3": Format(
        _LLAMA_3,
        "<|start_header_id|>system<|end_header_id|>\n\n" + _LLAMA_3_TAIL,
        "Llama 3",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "<|begin_of_text|>",
    ),
    "llama 3.2": Format(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: {{ strftime_now('%d %b %Y') }}\n\n{{ system }}<|eot_id|>"
        + _LLAMA_3.replace("{{ bos_token }}", ""),
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n" + _LLAMA_3_TAIL,
        "Llama 3",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "<|begin_of_text|>",
    ),
    "llama 2": Format(
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
        "{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] Why? [/INST]",
        "Llama 2",
        implied_bos="<s>",
    ),
    "mistral": Format(
        _SPLIT_SYSTEM
        + "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}[INST] {{ first if loop.first }}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[INST] Be brief.\n\nHi! [/INST] Hello.</s>[INST] Why? [/INST]",
        "Mistral",
        implied_bos="<s>",
    ),
    "mistral v3": Format(
        _SPLIT_SYSTEM
        + "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}[INST] {{ first if loop.last }}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[INST] Hi![/INST] Hello.</s>[INST] Be brief.\n\nWhy?[/INST]",
        "Mistral",
        implied_bos="<s>",
    ),
    "gemma": Format(
        "{{ bos_token }}" + _SPLIT_SYSTEM + _GEMMA_TURNS,
        "<start_of_turn>user\nBe brief.\n\nHi!<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        "Gemma",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        "<bos>",
    ),
    "phi 3": Format(
        _EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi!<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nWhy?<|end|>\n"
        "<|assistant|>\n",
        "Phi-3",
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    ),
    "phi 4": Format(
        _EACH + "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi!<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Hello.<|im_end|><|im_start|>user<|im_sep|>Why?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
        "Phi-4",
    ),
    "deepseek 2": Format(
        "{{ bos_token }}" + _EACH + "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
        "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        "Be brief.\n\nUser: Hi!\n\nAssistant: Hello.<｜end▁of▁sentence｜>User: Why?\n\nAssistant:",
        "DeepSeek 2",
        _DEEPSEEK_TOKENS,
        "<｜begin▁of▁sentence｜>",
    ),
    "deepseek 3": Format(
        _DEEPSEEK.replace("THINK", ""), _DEEPSEEK_TALK, "DeepSeek", _DEEPSEEK_TOKENS, "<｜begin▁of▁sentence｜>"
    ),
    "deepseek r1": Format(
        _DEEPSEEK.replace("THINK", "<think>{{ '\n' }}"),
        _DEEPSEEK_TALK + "<think>\n",
        "DeepSeek",
        _DEEPSEEK_TOKENS,
        "<｜begin▁of▁sentence｜>",
    ),
    "harmony": Format(
        "{% set effort = reasoning_effort | default('medium') %}"
        "{{ '<|start|>system<|message|>You are a large language model.\nCurrent date: ' + strftime_now('%Y-%m-%d') "
        "+ '\n\nReasoning: ' + effort + '\n\n# Valid channels: analysis, final.<|end|>' }}"
        "{% if messages[0].role == 'system' %}"
        "{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}"
        "{% set messages = messages[1:] %}{% endif %}"
        + _EACH
        + "{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|start|>system<|message|>You are a large language model.\nCurrent date: 2024-07-26\n\nReasoning: medium\n\n"
        "# Valid channels: analysis, final.<|end|><|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|>"
        "<|start|>user<|message|>Hi!<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|end|>"
        "<|start|>user<|message|>Why?<|end|><|start|>assistant",
        "Harmony",
    ),
    "zephyr": Format(
        _EACH + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi!</s>\n<|assistant|>\nHello.</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n",
        "Zephyr",
    ),
    "granite": Format(
        "{% if messages[0].role != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>Today is ' + "
        "strftime_now('%B %d, %Y') + '.<|end_of_text|>\n' }}{% endif %}"
        + _EACH
        + "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hi!"
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Hello.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Why?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "Granite",
    ),
    "command r": Format(
        "{{ bos_token }}"
        + _EACH
        + "<|START_OF_TURN_TOKEN|>{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', "
        "'assistant': '<|CHATBOT_TOKEN|>'}[m.role] }}{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi!"
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "Command R",
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
        "<BOS_TOKEN>",
    ),
    "glm": Format(
        "[gMASK]<sop>" + _EACH + "{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi!<|assistant|>\nHello.<|user|>\nWhy?<|assistant|>",
        "GLM",
    ),
    "unheard of": Format(
        _EACH + "@{{ m.role }} says {{ m.content }};{% endfor %}{% if add_generation_prompt %}@assistant says {% endif %}",
        "@system says Be brief.;@user says Hi!;@assistant says Hello.;@user says Why?;@assistant says ",
        None,
    ),
}  # fmt: skip
