# SPDX-License-Identifier: Apache-2.0
"""bench/isf.py: the symbol table that Volatility gets, of a BTF made by hand as Documentation/bpf/btf.rst has it."""

import base64
import importlib.util
import struct

from programs import ROOT

spec = importlib.util.spec_from_file_location("bench_isf", ROOT / "bench/isf.py")
isf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(isf)


class Made:
    """A BTF; types have the numbers from 1 on."""

    def __init__(self):
        self.strings, self.types = b"\0", b""

    def name(self, word):
        self.strings += word.encode() + b"\0" if word else b""
        return len(self.strings) - len(word) - 1 if word else 0

    def add(self, word, kind, number, tail=b"", vlen=0, flag=0):
        self.types += struct.pack("<III", self.name(word), flag << 31 | kind << 24 | vlen, number) + tail

    def members(self, *found):
        return b"".join(struct.pack("<III", self.name(word), kind, bits) for word, kind, bits in found)

    def octets(self):
        sizes = 0, len(self.types), len(self.types), len(self.strings)
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + self.types + self.strings


def made():
    btf = Made()
    btf.add("int", 1, 4, struct.pack("<I", 1 << 24 | 32))  # 1
    btf.add("unsigned int", 1, 4, struct.pack("<I", 32))  # 2
    btf.add("char", 1, 1, struct.pack("<I", 1 << 24 | 8))  # 3
    btf.add("", 3, 0, struct.pack("<III", 3, 2, 16))  # 4: char[16]
    btf.add("list_head", 4, 16, btf.members(("next", 6, 0), ("prev", 6, 64)), vlen=2)  # 5
    btf.add("", 2, 5)  # 6: its pointer
    btf.add("", 10, 1)  # 7: const int
    btf.add("pid_t", 8, 7)  # 8
    btf.add("", 5, 8, btf.members(("one", 6, 0), ("two", 8, 0)), vlen=2)  # 9: union without a name
    btf.add("state", 6, 4, struct.pack("<Ii", btf.name("GONE"), -1), vlen=1)  # 10
    btf.add("gone", 7, 0)  # 11: only declared
    btf.add("", 2, 11)  # 12
    fields = [("pid", 8, 0), ("", 9, 64), ("comm", 4, 128), ("state", 10, 256), ("gone", 12, 320)]
    fields += [("low", 2, 3 << 24 | 384), ("high", 2, 1 << 24 | 384 + 37)]
    btf.add("task_struct", 4, 64, btf.members(*fields), vlen=len(fields), flag=1)  # 13
    btf.add("timekeeper", 4, 8, btf.members(("offs_real", 8, 0)), vlen=1)  # 14
    btf.add("", 4, 16, btf.members(("seq", 2, 0), ("timekeeper", 14, 64)), vlen=2)  # 15
    return btf.octets()


def test_types_are_as_volatility_wants_them():
    base, user, enums = isf.Btf(made()).tables()
    assert base["int"] == {"size": 4, "signed": True, "kind": "int", "endian": "little"}
    assert (base["unsigned int"]["signed"], base["char"]["kind"], base["pointer"]["size"]) == (False, "char", 8)
    assert enums == {"state": {"size": 4, "base": "int", "constants": {"GONE": -1}}}
    task = user["task_struct"]
    assert (task["kind"], task["size"]) == ("struct", 64)
    assert task["fields"]["pid"] == {"type": {"kind": "base", "name": "int"}, "offset": 0}
    anonymous = {"type": {"kind": "union", "name": "unnamed_9"}, "offset": 8, "anonymous": True}
    assert task["fields"]["unnamed_field_1"] == anonymous
    array = {"kind": "array", "count": 16, "subtype": {"kind": "base", "name": "char"}}
    assert task["fields"]["comm"] == {"type": array, "offset": 16}
    assert task["fields"]["state"]["type"] == {"kind": "enum", "name": "state"}
    assert task["fields"]["gone"]["type"] == {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}
    bits = {"kind": "bitfield", "bit_length": 3, "bit_position": 0, "type": {"kind": "base", "name": "unsigned int"}}
    assert task["fields"]["low"] == {"type": bits, "offset": 48}
    assert task["fields"]["high"] == {"type": bits | {"bit_length": 1, "bit_position": 5}, "offset": 52}
    pointer = {"kind": "pointer", "subtype": {"kind": "struct", "name": "list_head"}}
    assert user["list_head"]["fields"]["prev"] == {"type": pointer, "offset": 8}


def test_symbols_have_the_types_that_the_list_of_processes_needs():
    banner = b"Linux version 6.1\n"
    symbols = isf.table(made(), {"init_task": 1, "tk_core": 2, "linux_banner": 3}, banner)["symbols"]
    assert symbols["init_task"] == {"address": 1, "type": {"kind": "struct", "name": "task_struct"}}
    assert symbols["tk_core"] == {"address": 2, "type": {"kind": "struct", "name": "unnamed_15"}}
    assert base64.b64decode(symbols["linux_banner"]["constant_data"]) == banner
