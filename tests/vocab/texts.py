"""About two hundred texts on which tokenizers like to differ."""

from __future__ import annotations

_WORDS = (
    "Hello, world!",
    "I'm sure they've said HE'LL go; don't y'all?",
    "The quick brown fox jumps over the lazy dog.",
    "naïve café résumé Zürich Ærøskøbing",
    "Привет, как дела? Всё хорошо.",
    "Ελληνικά: η γλώσσα μου",
    "你好，世界。这是一个测试！",
    "日本語のテキスト、カタカナとひらがな。",
    "한국어 문장을 토큰으로 나눕니다.",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם, מה שלומך?",
    "हिन्दी में एक वाक्य लिखिए।",
    "ภาษาไทยไม่มีช่องว่าง",
    "កាន់តែពិសេសអាច",
    "Tiếng Việt có dấu",
    "🚀 rocket 🦙🦙 llamas ✅",
    "👨‍👩‍👧‍👦 family 🏳️‍🌈 flag 😶‍🌫️",
    "∑ ∫ √ ≤ ≥ ± × ÷ → ⇒ ∀x∈ℝ",
    "def f(x: int) -> str:\n    return f'{x!r}'\n",
    'for (int i = 0; i < n; ++i) {\n\tprintf("%d\\n", a[i]);\n}',
    '<html><body class="x">&nbsp;</body></html>',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b"}}',
    "SELECT * FROM t WHERE a <> 'b' AND c >= 10;",
    "https://example.com/a/b?c=d&e=f#g user@example.org",
    "C:\\Windows\\System32 /usr/local/bin ~/.config",
    "camelCase PascalCase snake_case SCREAMING_CASE kebab-case",
    "iPhone eBay HTTPServer XMLHttpRequest getElementById",
    "3.14159 2,718,281 1e-9 0xDEADBEEF 0b1010 1_000",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789",
    "٠١٢٣٤٥٦٧٨٩ १२३ １２３ Ⅻ ½ ²",
    "$100 €50 £20 ¥1000 100% #1 @home",
    "...!!!???---===+++***///",
    "‘single’ “double” «angle» „low“ …—–",
    "a\u0301 e\u0301 o\u0308 n\u0303",
    "ﬁ ﬂ Å Ω ℃ ㎏",
    "'''''' ``` \"\"\" ((())) [[[]]] {{{}}}",
    "\u00a0nbsp\u3000ideographic\u2009thin",
    "zero\u200bwidth\u200cjoin\u200der\ufeffbom",
    "mixed中文and English和日本語",
    "a1b2c3 4d5e6f v1.2.3-beta+build.5",
)
_SPACES = (
    "",
    " ",
    "  ",
    "   ",
    "        ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r\n\r\n",
    " \n",
    "\n ",
    " \n \n ",
    "\t\n\t",
    "a b",
    "a  b",
    "a   b",
    " a",
    "  a",
    "a ",
    "a  ",
    "a\n",
    "a\n\n",
    "\na",
    "a\nb\nc",
    "a\n\n  b",
    "a\t b",
    "   leading and trailing   ",
    "line one\r\nline two\r\n",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
)


def texts() -> list[str]:
    """The texts, in a fixed order, without repetition."""
    varied = [*_SPACES, *_WORDS]
    varied += [f" {word}" for word in _WORDS]
    varied += [f"{word}\n{other}" for word, other in zip(_WORDS, _WORDS[7:])]
    varied += [f"{word}  {other}" for word, other in zip(_WORDS[3:], _WORDS[19:])]
    varied += [word.upper() for word in _WORDS[:12]]
    varied += [
        "".join(chr(c) for c in range(start, start + 40)) for start in (0x21, 0xA1, 0x370, 0x3041, 0x4E00)
    ]
    varied += ["x" * 300, "ab " * 60, "9" * 50, "=" * 81, " ".join(_WORDS)]
    return list(dict.fromkeys(varied))
