"""Tokenizer files of a Hugging Face folder -> the tokenizer metadata of a GGUF file."""

from ewq_gguf.vocab.bpe import load_bpe
from ewq_gguf.vocab.faithful import TokenizerMode, faithful
from ewq_gguf.vocab.limits import limits
from ewq_gguf.vocab.llama_hf import is_llama_hf, load_llama_hf
from ewq_gguf.vocab.load import load_vocabulary
from ewq_gguf.vocab.plamo import load_plamo
from ewq_gguf.vocab.rwkv import load_rwkv
from ewq_gguf.vocab.special import SpecialTokens, read_special_tokens
from ewq_gguf.vocab.spm import has_sentencepiece, load_sentencepiece
from ewq_gguf.vocab.tekken import is_tekken, load_tekken
from ewq_gguf.vocab.tiktoken import load_hunyuan_tiktoken, load_kimi_tiktoken, load_qwen_tiktoken
from ewq_gguf.vocab.unigram import load_xlm_roberta
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary
from ewq_gguf.vocab.wordpiece import load_wordpiece

__all__ = [
    "SpecialTokens",
    "TokenType",
    "TokenizerMode",
    "Vocabulary",
    "faithful",
    "has_sentencepiece",
    "is_llama_hf",
    "is_tekken",
    "limits",
    "load_bpe",
    "load_hunyuan_tiktoken",
    "load_kimi_tiktoken",
    "load_llama_hf",
    "load_plamo",
    "load_qwen_tiktoken",
    "load_rwkv",
    "load_sentencepiece",
    "load_tekken",
    "load_vocabulary",
    "load_wordpiece",
    "load_xlm_roberta",
    "read_special_tokens",
]
