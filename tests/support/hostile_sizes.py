"""Checkpoint files that would take any amount of memory or time, or read memory that is not theirs."""

from __future__ import annotations

import struct
from pathlib import Path

from hostile_making import (
    MEGABYTE,
    ONES,
    Table,
    call,
    checkpoint,
    legacy_checkpoint,
    name,
    storage,
    tensor,
    text,
    tuple_of,
    whole,
    whole_tuple,
    write_legacy,
)

SIZES = Table()


# Memory and time


@SIZES.pickle(r"asks for builtins\.bytearray")
def bytearray_of_a_number(trap: str) -> bytes:
    """Takes 100 GB."""
    return checkpoint(call("builtins.bytearray", whole(10**11)))


@SIZES.pickle(r"asks for torch\.FloatTensor")
def tensor_of_a_number(trap: str) -> bytes:
    """Takes 400 GB."""
    return checkpoint(weight=call("torch.FloatTensor", whole(10**11)))


@SIZES.pickle(r"asks for torch\.storage\.UntypedStorage")
def storage_of_a_number(trap: str) -> bytes:
    """Takes 100 GB."""
    return checkpoint(call("torch.storage.UntypedStorage", whole(10**11)))


@SIZES.pickle(r"calls torch\.FloatStorage with other arguments")
def storage_type_called(trap: str) -> bytes:
    """Calls what may only stand in a persistent id."""
    return checkpoint(call("torch.FloatStorage", whole(10**11)))


@SIZES.pickle(r"asks for torch\._utils\._rebuild_meta_tensor_no_storage")
def tensor_without_values(trap: str) -> bytes:
    """A weight of any size that takes no memory until it is used."""
    sizes = whole_tuple((10**12,)), whole_tuple((1,))
    return checkpoint(
        weight=call("torch._utils._rebuild_meta_tensor_no_storage", name("torch.float32"), *sizes, b"\x89")
    )


@SIZES.pickle(r"asks for torch\._utils\._rebuild_sparse_tensor")
def sparse_tensor(trap: str) -> bytes:
    """Indices out of bounds are read wherever they point."""
    return checkpoint(weight=call("torch._utils._rebuild_sparse_tensor", text("torch.sparse_coo"), b")"))


@SIZES.pickle(r"calls _codecs\.encode with other arguments")
def hex_of_hex(trap: str) -> bytes:
    """Doubles at each of 60 calls of 20 bytes."""
    pickle = call("_codecs.encode", text("a"), text("latin1"))
    for _ in range(60):
        pickle = name("_codecs.encode") + tuple_of(pickle, text("hex")) + b"R"
    return checkpoint(pickle)


@SIZES.pickle("more memory than the file")
def bytes_of_one_text(trap: str) -> bytes:
    """Makes a megabyte of bytes of the same text again and again."""
    again = b"h\x01" + tuple_of(b"h\x00", text("latin1")) + b"R"
    first = name("_codecs.encode") + b"q\x01" + tuple_of(text("a" * MEGABYTE) + b"q\x00", text("latin1")) + b"R"
    return checkpoint(b"](" + first + again * 5000 + b"e")


@SIZES.pickle("calls collections.OrderedDict with other arguments")
def copies_of_a_dict(trap: str) -> bytes:
    """Copies a large dict at every call of 5 bytes."""
    large = b"}(" + b"".join(whole(number) + b"N" for number in range(50_000)) + b"u\x85q\x00"
    return checkpoint(tuple_of(large, *[name("collections.OrderedDict") + b"h\x00R"] * 2000))


@SIZES.pickle("more memory than the file")
def copies_of_a_counter(trap: str) -> bytes:
    """The same by a class that may copy."""
    large = b"}(" + b"".join(whole(number) + b"N" for number in range(50_000)) + b"u\x85q\x00"
    return checkpoint(tuple_of(large, *[name("collections.Counter") + b"h\x00R"] * 2000))


@SIZES.pickle("more memory than the file")
def copies_of_a_set(trap: str) -> bytes:
    """The same for a set."""
    large = b"](" + b"".join(whole(number) for number in range(50_000)) + b"e\x85q\x00"
    return checkpoint(tuple_of(large, *[name("builtins.set") + b"h\x00R"] * 2000))


@SIZES.pickle("more memory than the file")
def empty_lists(trap: str) -> bytes:
    """Makes 64 bytes of each."""
    return checkpoint(b"(" + b"]" * MEGABYTE + b"t")


@SIZES.pickle("more memory than the file")
def marks(trap: str) -> bytes:
    """Makes a stack of each byte."""
    return checkpoint(b"(" * MEGABYTE)


@SIZES.pickle("more memory than the file")
def nothing_again_and_again(trap: str) -> bytes:
    """Makes 8 bytes of each."""
    return checkpoint(b"(" + b"N" * 3 * MEGABYTE + b"t")


@SIZES.pickle("more memory than the file")
def memo_of_a_million(trap: str) -> bytes:
    """Remembers one value under a million numbers."""
    return checkpoint(b"N" + b"".join(b"r" + struct.pack("<I", number) for number in range(MEGABYTE // 2)))


@SIZES.pickle("more memory than the file")
def views_of_one_storage(trap: str) -> bytes:
    """Makes a kilobyte of each tensor of 5 bytes."""
    arguments = tensor()[len(name("torch._utils._rebuild_tensor_v2")) : -1]
    first = name("torch._utils._rebuild_tensor_v2") + b"q\x01" + arguments + b"q\x02R"
    return checkpoint(b"](" + first + b"h\x01h\x02R" * 100_000 + b"e")


@SIZES.pickle("more memory than the file")
def one_wide_character(trap: str) -> bytes:
    """Makes Python take four bytes for each of a long text."""
    return checkpoint(text("a" * 8 * MEGABYTE + "\U0001f600"))


@SIZES.pickle("more than 100 classes")
def a_thousand_classes(trap: str) -> bytes:
    """torch goes through all of them at each call."""
    return checkpoint(tuple_of(*(name(f"some.Class{number}") for number in range(1000))))


@SIZES.pickle("shares its containers")
def billion_laughs(trap: str) -> bytes:
    """Lists of the same list ten times over, which nobody can go through."""
    levels = (tuple_of(*[b"h" + bytes([level])] * 10) + b"q" + bytes([level + 1]) for level in range(30))
    return checkpoint(tuple_of(b")q\x00", *levels))


@SIZES.pickle("makes a dict or set key of a value of the type tuple")
def key_of_nested_tuples(trap: str) -> bytes:
    """Hashes for ever."""
    nested = b")" + b"".join(b"q\x00h\x00\x86" for _ in range(15))
    return checkpoint(b"}" + nested + b"Ns")


@SIZES.pickle("keys of huge numbers")
def keys_of_equal_hashes(trap: str) -> bytes:
    """Compares each key with all before."""
    return checkpoint(b"}(" + b"".join(whole(number * (2**61 - 1)) + b"N" for number in range(1, 50_000)) + b"u")


@SIZES.pickle("more memory than the file")
def keys_of_many_tuples(trap: str) -> bytes:
    """The same with tuples, whose hashes can be made equal as well."""
    return checkpoint(b"}(" + b"".join(whole_tuple((number, 1)) + b"N" for number in range(10_000)) + b"u")


@SIZES.pickle("nests more than 100")
def deep_lists(trap: str) -> bytes:
    """Nests so deep that showing or comparing it overflows the stack."""
    return checkpoint(b"]" * 10_000 + b"a" * 9_999)


@SIZES.pickle("nests more than 100")
def deep_tuples(trap: str) -> bytes:
    """The same from within."""
    return checkpoint(b")" + b"\x85" * 10_000)


@SIZES.pickle("type list that holds itself")
def a_list_of_itself(trap: str) -> bytes:
    """Nests without end."""
    return checkpoint(b"]q\x00h\x00a")


@SIZES.pickle("a text in it longer than all the rest", unsafe=False)
def a_lying_text(trap: str) -> bytes:
    """Says that 4 GB of text follow."""
    return checkpoint(b"X\xff\xff\xff\xff")


@SIZES.pickle("a text in it longer than all the rest", unsafe=False, legacy=True)
def a_lying_text_in_a_legacy_file(trap: str) -> bytes:
    """Says that 4 GB of text follow, in a file from which torch reads at once what it is told."""
    return checkpoint(b"X\xff\xff\xff\xff")


# Tensors


@SIZES.pickle("takes its storage '0' for 400000000000 bytes, of which the file holds 16")
def a_storage_larger_than_its_record(trap: str) -> bytes:
    """Reads beyond the record."""
    return checkpoint(weight=tensor(stored=storage(10**11)))


@SIZES.file("the storage|its storage '0' of 400000000000 bytes", unsafe=False)
def a_storage_larger_than_the_legacy_file(path: Path) -> None:
    """torch takes the memory before it looks."""
    write_legacy(path, legacy_checkpoint(10**11), struct.pack("<q", 10**11) + ONES)


@SIZES.file("its storage '0' is not of the 4 elements")
def a_storage_of_another_size_in_a_legacy_file(path: Path) -> None:
    """Says one size in the pickle and another before the values."""
    write_legacy(path, legacy_checkpoint(), struct.pack("<q", 2) + ONES)


@SIZES.file("the storages that its tensors ask for")
def a_storage_without_values(path: Path) -> None:
    """Shows what was in the memory before."""
    write_legacy(path, legacy_checkpoint(), b"", b"\x80\x02].")


@SIZES.pickle("does not hold its storage '7'", unsafe=False)
def a_storage_that_is_not_there(trap: str) -> bytes:
    """Asks for a record that the file does not have."""
    return checkpoint(weight=tensor(stored=storage(4, key="7")))


@SIZES.pickle("takes its storage '0' for two different ones")
def a_storage_of_two_types(trap: str) -> bytes:
    """Gets the first type's wider elements with the second one's count."""
    return checkpoint(storage(4), weight=tensor((16,), stored=storage(16, "ByteStorage")))


@SIZES.pickle("no storage's: a value of the type int")
def a_persistent_number(trap: str) -> bytes:
    """A persistent id of another kind."""
    return checkpoint(b"K\x07Q")


@SIZES.pickle("no storage's: a value of the type tuple")
def a_persistent_module(trap: str) -> bytes:
    """Has torch look at source files."""
    return checkpoint(tuple_of(text("module"), name("some.Module"), text("file.py"), text("source")) + b"Q")


TENSORS = {
    "a_tensor_beyond_its_storage": (r"sizes \(5,\)", ((5,), (1,), 0)),
    "a_tensor_that_begins_beyond_its_storage": ("from 4 on", ((1,), (1,), 4)),
    "a_tensor_with_wide_strides": (r"strides \(4,\)", ((2,), (4,), 0)),
    "a_tensor_of_one_value_10_to_the_12_times": (r"sizes \(1000000000000,\)", ((10**12,), (0,), 0)),
    "a_tensor_of_a_negative_stride": ("negative", ((2,), (-1,), 1)),
    "a_tensor_of_a_negative_size": ("negative", ((-4,), (1,), 0)),
    "a_tensor_of_a_negative_offset": ("negative", ((4,), (1,), -4)),
    "a_tensor_of_overflowing_sizes": ("sizes", ((2**62, 2**62), (1, 1), 0)),
    "a_tensor_of_99_dimensions": ("other arguments", ((1,) * 99, (1,) * 99, 0)),
}
for label, (why, described) in TENSORS.items():

    def make_tensor(trap: str, described: tuple[tuple[int, ...], tuple[int, ...], int] = described) -> bytes:
        return checkpoint(weight=tensor(*described))

    make_tensor.__name__ = label
    SIZES.pickle(why)(make_tensor)
