"""Hashes as schemas/README.md defines them, computed here a second time from that text."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tracekit.fingerprint import chat_template_hash, model_fingerprint, prompt_hash, tokenizer_hash


def blake2b(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class TestPromptHash:
    def test_is_of_little_endian_int32(self) -> None:
        ids = [1, 258, 49151, 2**31 - 1]
        assert prompt_hash(ids) == blake2b(struct.pack("<4i", *ids))

    def test_example_of_the_specification(self) -> None:
        readme = (Path(__file__).parents[2] / "schemas" / "README.md").read_text()
        assert f"`[1, 2, 3]` has `{prompt_hash([1, 2, 3])}`" in readme

    def test_empty_prompt(self) -> None:
        assert prompt_hash([]) == blake2b(b"")

    def test_depends_on_values_not_on_container(self) -> None:
        ids = [5, 6, 7]
        assert prompt_hash(ids) == prompt_hash(tuple(ids)) == prompt_hash(np.array(ids)) == prompt_hash(iter(ids))
        assert prompt_hash(ids) != prompt_hash([5, 7, 6])

    def test_ids_beyond_32_bits_are_refused(self) -> None:
        with pytest.raises(OverflowError):
            prompt_hash([2**31])


class TestModelFingerprint:
    def test_small_files_are_read_whole_in_byte_order_of_names(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes(b'{"a": 1}')
        for name, content in (("b.safetensors", b"second"), ("B.safetensors", b"first!"), ("x.bin", b"not counted")):
            (tmp_path / name).write_bytes(content)
        expected = b'{"a": 1}' + b"\0B.safetensors\x006\0first!" + b"\0b.safetensors\x006\0second"
        assert model_fingerprint(tmp_path) == model_fingerprint(str(tmp_path)) == blake2b(expected)

    @pytest.mark.parametrize("size", [262_144, 262_145, 1_000_003])
    def test_large_files_are_sampled(self, tmp_path: Path, size: int) -> None:
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / "m.safetensors").write_bytes(content)
        if size <= 262_144:
            samples = content
        else:
            offsets = [(size - 4096) * i // 63 for i in range(64)]
            samples = b"".join(content[offset : offset + 4096] for offset in offsets)
            assert offsets[-1] + 4096 == size
        assert model_fingerprint(tmp_path) == blake2b(f"\0m.safetensors\0{size}\0".encode() + samples)

    def test_tells_configurations_and_weights_apart(self, tmp_path: Path) -> None:
        seen = set()
        for config, weights in ((b"{}", b"w"), (b"{ }", b"w"), (b"{}", b"v"), (b"{}", b"ww")):
            (tmp_path / "config.json").write_bytes(config)
            (tmp_path / "m.safetensors").write_bytes(weights)
            seen.add(model_fingerprint(tmp_path))
        assert len(seen) == 4

    def test_of_a_model_in_one_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF and more")
        assert model_fingerprint(tmp_path / "m.gguf") == blake2b(b"\0m.gguf\x0013\0GGUF and more")

    def test_null_where_there_is_no_folder_with_a_model(self, tmp_path: Path) -> None:
        assert model_fingerprint("organisation/model") is None
        assert model_fingerprint(tmp_path) is None
        (tmp_path / "config.json").mkdir()
        assert model_fingerprint(tmp_path) is None


class TestTokenizerHash:
    def test_tokenizer_json_stands_for_all(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_bytes(b"other")
        (tmp_path / "tokenizer.json").write_bytes(b"all of it")
        assert tokenizer_hash(tmp_path) == blake2b(b"all of it")

    def test_older_forms_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_bytes(b"vv")
        (tmp_path / "merges.txt").write_bytes(b"m")
        (tmp_path / "config.json").write_bytes(b"not a tokenizer")
        assert tokenizer_hash(tmp_path) == blake2b(b"\0merges.txt\x001\0m" + b"\0vocab.json\x002\0vv")

    def test_null_where_there_is_none(self, tmp_path: Path) -> None:
        assert tokenizer_hash(tmp_path) is None
        assert tokenizer_hash("organisation/model") is None


class TestChatTemplateHash:
    def test_file_of_its_own_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
        (tmp_path / "chat_template.jinja").write_text("{{ é }}", encoding="utf-8")
        assert chat_template_hash(tmp_path) == blake2b("{{ é }}".encode())

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ("{{ x }}", "{{ x }}"),
            ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
            ([{"name": "tool_use", "template": "t"}], None),
            (None, None),
        ],
    )
    def test_from_the_tokenizer_configuration(self, tmp_path: Path, template: object, expected: str | None) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        assert chat_template_hash(tmp_path) == (blake2b(expected.encode()) if expected is not None else None)

    @pytest.mark.parametrize("content", ["not JSON", "[]", "{}"])
    def test_null_where_there_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer_config.json").write_text(content)
        assert chat_template_hash(tmp_path) is None
        assert chat_template_hash("organisation/model") is None


def test_same_text_has_the_same_hash_in_both_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    assert chat_template_hash(tmp_path / "a") == chat_template_hash(tmp_path / "b")


def test_needs_neither_torch_nor_pyarrow() -> None:
    script = "import sys, tracekit.fingerprint; print(sorted({'torch', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
