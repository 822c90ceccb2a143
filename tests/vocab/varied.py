"""Three hundred texts for comparing tokenizers: those of `texts` and the rarer things people write."""

from __future__ import annotations

import unicodedata

from .texts import texts

_CONTRACTIONS = (
    "I'd've, y'all'd've, 'twas, rock'n'roll, o'clock, ma'am, 'n'",
    "IT'S THEY'RE WE'LL I'M YOU'D HE'S CAN'T",
    "It\u2019s they\u2019re we\u2019ll \u2018quoted\u2019 l\u2019eau d\u02bcor",
    "l'homme qu'il aujourd'hui d'accord",
    "Ankara'da İstanbul'un dell'arte po' d'Artagnan'ı",
    "a'b'c 's 'S 't 'T 're 'RE 'Re 'll 'LL 'd 'D",
)
_MARKS = (
    "café nai\u0308ve re\u0301sume\u0301 Z\u0303\u0303\u0303algo h\u0335e\u0336l\u0337l\u0338o",
    "\u0301 leading mark, a\u0301\u0302\u0303\u0304b",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f",
    "বাংলা ভাষায় একটি বাক্য",
    "தமிழ் எழுத்துக்கள் தெலுగు కన్నడ ಕನ್ನಡ മലയാളം",
    "\u0627\u0644\u0633\u064e\u0651\u0644\u064e\u0627\u0645\u064f \u0639\u064e\u0644\u064e\u064a\u0652\u0643\u064f\u0645\u0652",
    "\u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea \u05d1\u05b8\u05bc\u05e8\u05b8\u05d0",
    "\u1112\u1161\u11ab\u1100\u1173\u11af decomposed Hangul",
    "\u304b\u3099\u30cf\u309a decomposed kana",
    "Vie\u0323\u0302t Nam, tie\u0302\u0301ng Vie\u0323\u0302t",
    "\u212b \u2126 \u1e9b\u0323 \ufb01 \u2460 \uff21\uff22\uff23 \u3392",
)
_SCRIPTS = (
    "ქართული ენა და დამწერლობა",
    "Հայերեն լեզու և այբուբեն",
    "አማርኛ ፊደል ነው",
    "ລາວ ພາສາ ພຶດຕິກຳ",
    "မြန်မာဘာသာစကား",
    "བོད་སྐད་དང་ཡི་གེ",
    "සිංහල භාෂාව",
    "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "ᚠᚢᚦᚨᚱᚲ ᛫ 𐌰𐌱𐌲 𐎀𐎁𐎂 𓀀𓀁𓂀",
    "ｆｕｌｌ　ｗｉｄｔｈ ＡＢＣ １２３",
    "İıĞğŞş ÄÖÜß ÅåØø ŁłŻż Őő ǅǈǋ",
    "ЁЖИК ѣѳѵ Ґґ Її Ўў Ӑӑ",
    "ΑΒΓ ΐΰ ΆΈΉ ᾳᾴᾶ ΣΑΣ σας",
    "تمرین فارسی: می‌روم، کتاب‌ها ۱۲۳",
    "אבג \u200f12 abc\u200e \u202bRTL\u202c \u2067mixed\u2069",
)
_HAN = (
    "𠀀𠀁𠂉 𪜀𫝀𫠠 㐀㒨䶵 豈更車",
    "中国🇨🇳和日本🇯🇵2024年1月1日",
    "々〆〇〒「」『』【】〔〕・ーヽヾ",
    "한글ㄱㄴㄷㅏㅑ漢字ひらがなカタカナｶﾀｶﾅ",
    "價格：￥１２３４．５６元，折扣50%。",
    "ㄅㄆㄇㄈ ㄪㄫㄬ ㆠㆡ",
    "他说：“你好！”——然后走了……",
)
_EMOJI = (
    "👩🏽‍💻👨🏿‍🚀🧑‍🤝‍🧑🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "❤️‍🔥 ☺️ ☺ ✌🏻 #️⃣ 1️⃣ 🅰️",
    "😀😃😄😁😆😅🤣😂🙂🙃",
    "text😀text 😀 text😀😀 :-) ¯\\_(ツ)_/¯",
    "🇺🇸🇬🇧🇫🇷🇩🇪 \U0001fae8\U0001faf7 \ufe0f\u200d",
)
_DIGITS = (
    "0 00 000 0000 00000 000000",
    "12345678901234567890123456789012345678901234567890",
    "1,234,567.89 1.234.567,89 1 234 567 1'234'567",
    "3.14e-10 +49 (0)30 123456 192.168.0.1 ::1 fe80::1%eth0",
    "2024-02-29T23:59:59.999Z 12:34 1/2 3x4 5th 6e7",
    "x1 y22 z333 1a 22bb 333ccc 0x1F4A9 0o777 1_000_000",
    "٣٤٥٦٧٨٩ ۰۱۲۳۴ ০১২৩৪ ๐๑๒๓๔ 〇一二三 ⅠⅡⅢⅣ ①②③ ⁰¹²³ ₀₁₂",
    "№5 §12 ¶3 ½¾⅞ 7⁄8 10² x₁",
)
_SPACE_RUNS = (
    *(" " * count for count in (4, 5, 7, 9, 16, 17, 31, 33, 100)),
    *(f"a{' ' * count}b" for count in (4, 7, 15, 16, 31)),
    *("\n" * count for count in (4, 5, 8, 17)),
    *("\t" * count for count in (3, 4, 9)),
    *("\r", "\r\r", "a\rb", "\x0b\x0c", "a\x85b\u2028c\u2029d"),
    *("\u00a0\u00a0a", " \u00a0 a", "\u3000\u3000全角", "\u2003\u2003em", "a\u200b\u200bb", "\ufeffa"),
    *(" \t \t a", "\n\n\n    indented", "  \n  \n  a", "a \n", "a \n b", ".\n", ".\n\n", "!\r\n\r\na"),
    *(" \n\n a", "\t\ta\n\t\tb\n", "a\n \nb", "...\n\n\n...", "end.  Next", "end.\u00a0Next"),
)
_CODE = (
    "#!/usr/bin/env python3\nimport os, sys\n\n\nclass A(B):\n    '''Doc.'''\n\n    def f(self):\n\t\treturn {**a, 'k': [*b]}\n",
    'fn main() -> Result<(), Box<dyn Error>> { println!("{:?}", x?); Ok(()) }',
    "#include <iostream>\r\nint main() { std::cout << x << std::endl; }\r\n",
    "const f = async ({a, b = 1, ...c}) => `${a}-${b ?? 'z'}`;\n// end",
    "\\begin{align}\n  \\frac{\\partial f}{\\partial x} &= \\int_0^\\infty e^{-x^2} dx \\\\\n\\end{align}",
    "$ curl -sSL 'https://x.y/z?a=1&b=%20' | jq '.[] | {id, n: .name}' > out.json 2>&1",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- [x] done\n- [ ] not\n\n```py\nx\n```\n",
    "<?xml version='1.0'?><a b=\"c\"><!-- d --><![CDATA[<e>]]></a>",
    "a+=b<<=2;c**=3;d//=4;e!==f;g<=>h;i?.j??k;l=>m;n->o;p::q",
    "^(?:[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[^\\s]+\\.(com|org)$",
    "MOV EAX, [EBX+4*ECX-0x10] ; comment\nJNZ .loop\n",
)
_ESCAPES = (
    "\\ud83d\\ude00 \\uD800 \\udfff \\x00 \\u0000 &#xD83D; %ED%A0%80",
    "\ufffd \ufffd\ufffd \ufffe \uffff \U0010ffff",
    "null\x00byte \x01\x02\x1b[31mred\x1b[0m \x7f\x80\x9f",
    "\ud7ff\ue000\uf8ff private \U000f0000\U00100000",
    "<0x0A> <0xFF> <0x41> <unk> ▁ ▁▁ a▁b Ġ Ċ ĠĊ Ã©",
    "\u00ad soft\u00adhyphen \u2060 \u061c \u180e \u034f",
)
_LITERAL_TOKENS = (
    "<s> </s> <|endoftext|> <|im_start|>user",
    "[INST] x [/INST] [PAD] [CLS] [MASK]",
    "<|x|> <|> < |x| > <|im_end <|eot_id| >",
    "<start_of_turn>model\nHi<end_of_turn>\n",
    "<think>\nhm\n</think>\n\nanswer <tool_call>{}</tool_call>",
    "<bos><eos><pad><mask> <unused0> <extra_id_0>",
    "<｜begin▁of▁sentence｜>x<｜User｜>y<｜Assistant｜>",
    "<<SYS>> s <</SYS>> ### Instruction:\n\n### Response:\n",
)
_PUNCTUATION = (
    "!!!!!!!!!! ?????????? .......... ,,,,,,,,,, ;;;;;;;;;;",
    "---------- ========== ########## ********** __________",
    "«»‹›„‚“”‘’‛‟′″‴ ‐‑‒–—―‖ …‥· •◦▪",
    "← ↑ → ↓ ⇐ ⇔ ∀ ∃ ∅ ∇ ∈ ∉ ∏ ∑ √ ∞ ≈ ≠ ≡",
    "€£¥₹₽₿¢ ©®™ ℠ ℡ № ‰ ‱ °C °F",
    "a-b a–b a—b a_b a.b a,b a;b a:b a/b a\\b a|b a~b a`b",
    "(a)[b]{c}<d>\"e\"'f'«g»“h”",
    "،؛؟ ۔ ।॥ ፡። 、。・ ！？：；",
)


def varied_texts() -> list[str]:
    """The texts, in a fixed order, without repetition; every one can be encoded as UTF-8."""
    groups = (
        *(_CONTRACTIONS, _MARKS, _SCRIPTS, _HAN, _EMOJI, _DIGITS, _SPACE_RUNS),
        *(_CODE, _ESCAPES, _LITERAL_TOKENS, _PUNCTUATION),
    )
    varied = [*texts(), *(text for group in groups for text in group)]
    varied += [f"{a}{b}" for a, b in zip(_SCRIPTS, _HAN + _EMOJI)]
    varied += [f" {text}\n" for text in (*_MARKS, *_DIGITS, *_CONTRACTIONS)]
    varied += [text.upper() for text in _SCRIPTS[:12]]
    varied += [unicodedata.normalize("NFD", text) for text in _SCRIPTS]
    long = "\n\n".join((*_CODE, *_SCRIPTS, *_HAN, *_EMOJI, *_PUNCTUATION))
    varied += [long, long[::-1], "word " * 400, "汉字" * 200, "ab" * 500, "a\n" * 150, "é" * 200, "🦙" * 100]
    return list(dict.fromkeys(varied))
