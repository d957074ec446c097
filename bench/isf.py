# SPDX-License-Identifier: Apache-2.0
"""A symbol table for Volatility 3 of a kernel, from its BTF and kallsyms: no debug package (858 MB) is needed.

Of the form 6.2.0 of Volatility's schemas. As dwarf2json, which makes one from debug information, but for the types of
variables, which BTF has not: those that the list of processes needs are put in.
"""

import base64
import struct

_HEADER, _WORDS = struct.Struct("<HBBIIIII"), struct.Struct("<III")
# Kinds of Documentation/bpf/btf.rst of Linux.
_INT, _POINTER, _ARRAY, _STRUCT, _UNION, _ENUM, _FORWARD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNCTION, _PROTOTYPE, _VARIABLE, _SECTION, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _PROTOTYPE: 8, _SECTION: 12, _ENUM64: 12}  # octets of each of its `vlen`
_FIXED = {_INT: 4, _ARRAY: 12, _VARIABLE: 4, _DECL_TAG: 4}
_ALIAS = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_SIGNED, _CHAR, _BOOL = 1, 2, 4
_VOID = {"kind": "base", "name": "void"}


class Btf:
    """The types in *octets*, a kernel's BTF."""

    def __init__(self, octets):
        _, _, _, length, types, count, strings, size = _HEADER.unpack_from(octets)
        self._strings = octets[length + strings : length + strings + size]
        self._types = [("", 0, 0, 0, b"")]  # name, kind, vlen and flag, size or type, what follows
        place, end = length + types, length + types + count
        while place < end:
            name, info, number = _WORDS.unpack_from(octets, place)
            kind, each = info >> 24 & 31, info & 0xFFFF
            after = place + 12
            place = after + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * each
            self._types.append((self._text(name), kind, info, number, octets[after:place]))

    def _text(self, place):
        return self._strings[place : self._strings.index(b"\0", place)].decode()

    def _name(self, number):
        return self._types[number][0] or f"unnamed_{number}"

    def tables(self):
        """The base types, structures and enumerations, each by its name; of several with one name the first."""
        base, user, enums = {}, {}, {}
        base["void"] = {"size": 0, "signed": False, "kind": "void", "endian": "little"}
        base["pointer"] = {"size": 8, "signed": False, "kind": "int", "endian": "little"}
        for number, (_, kind, info, size, tail) in enumerate(self._types):
            name = self._name(number)
            if kind in (_INT, _FLOAT):
                base.setdefault(name, self._base(kind, size, tail))
            elif kind in (_STRUCT, _UNION) and name not in user:
                fields = dict(self._fields(info, tail))
                user[name] = {"kind": "struct" if kind == _STRUCT else "union", "size": size, "fields": fields}
            elif kind in (_ENUM, _ENUM64) and name not in enums:
                form = struct.Struct("<Ii" if kind == _ENUM else "<Iq")
                constants = {self._text(place): value for place, value in form.iter_unpack(tail)}
                # BTF does not say of what type it is, but how large.
                enums[name] = {"size": size, "base": "int" if size == 4 else "long long int", "constants": constants}
                base.setdefault("long long int", {**base["pointer"], "signed": True})
        return base, user, enums

    def _base(self, kind, size, tail):
        how = tail[3] if kind == _INT else _SIGNED
        word = "float" if kind == _FLOAT else "bool" if how & _BOOL else "char" if size == 1 else "int"
        return {"size": size, "signed": bool(how & _SIGNED), "kind": word, "endian": "little"}

    def _fields(self, info, tail):
        for number, (place, kind, bits) in enumerate(_WORDS.iter_unpack(tail)):
            width, offset = (bits >> 24, bits & 0xFFFFFF) if info >> 31 else (0, bits)
            made = {"type": self.type(kind), "offset": offset // 8}
            if width:  # in the unit of its type that it is in
                unit = 8 * self._size(kind)
                made["offset"] = offset // unit * unit // 8
                made["type"] = {"kind": "bitfield", "bit_length": width, "bit_position": offset % unit}
                made["type"]["type"] = self.type(kind)
            if place == 0:
                made["anonymous"] = True
            yield self._text(place) or f"unnamed_field_{number}", made

    def _size(self, number):
        _, kind, _, other, _ = self._types[number]
        return self._size(other) if kind in _ALIAS else other

    def type(self, number):
        """What refers to the type of that number."""
        if number == 0:
            return _VOID
        _, kind, _, other, tail = self._types[number]
        name = self._name(number)
        if kind in _ALIAS:
            return self.type(other)
        if kind in (_INT, _FLOAT):
            return {"kind": "base", "name": name}
        if kind == _POINTER:
            return {"kind": "pointer", "subtype": self.type(other)}
        if kind == _ARRAY:
            subtype, _, count = _WORDS.unpack(tail)
            return {"kind": "array", "count": count, "subtype": self.type(subtype)}
        if kind in (_STRUCT, _UNION):
            return {"kind": "struct" if kind == _STRUCT else "union", "name": name}
        if kind in (_ENUM, _ENUM64):
            return {"kind": "enum", "name": name}
        return {"kind": "function"} if kind == _PROTOTYPE else _VOID  # of a structure that is only declared


def table(octets, addresses, banner):
    """The symbol table: BTF, the address by name of symbols where the kernel was linked to, and its linux_banner."""
    base, user, enums = Btf(octets).tables()
    symbols = {name: {"address": address} for name, address in addresses.items()}
    symbols["init_task"]["type"] = {"kind": "struct", "name": "task_struct"}
    for name, made in user.items():  # of no name: static struct { seqcount_…; struct timekeeper timekeeper; } tk_core
        if name.startswith("unnamed_") and list(made["fields"]) == ["seq", "timekeeper"]:
            symbols["tk_core"]["type"] = {"kind": "struct", "name": name}
    length = {"kind": "array", "count": len(banner), "subtype": {"kind": "base", "name": "char"}}
    symbols["linux_banner"] |= {"type": length, "constant_data": base64.b64encode(banner).decode()}
    about = {"format": "6.2.0", "producer": {"name": "bench/isf.py", "version": "1"}}
    return {"metadata": about, "base_types": base, "user_types": user, "enums": enums, "symbols": symbols}
