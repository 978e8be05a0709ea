"""Checkpoint files that would run code, or pass something off as a tensor."""

from __future__ import annotations

from pathlib import Path

from hostile_making import (
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

CODE = Table()


# Code


@CODE.pickle(r"posix\.system")
def os_system(trap: str) -> bytes:
    """Runs a command."""
    return checkpoint(call("posix.system", text(f"mkdir {trap}")))


@CODE.pickle(r"posix\.system", legacy=True)
def os_system_in_a_legacy_file(trap: str) -> bytes:
    """Runs a command; torch's own list of a file's names does not cover legacy files."""
    return checkpoint(call("posix.system", text(f"mkdir {trap}")), state=b"}")


@CODE.pickle(r"builtins\.eval")
def eval_of_text(trap: str) -> bytes:
    """Evaluates Python."""
    return checkpoint(call("builtins.eval", text(f"__import__('os').mkdir({trap!r})")))


@CODE.pickle(r"builtins\.exec")
def exec_of_python_2(trap: str) -> bytes:
    """Runs Python, under the name that Python 2 has for it."""
    return checkpoint(call("__builtin__.exec", text(f"import os; os.mkdir({trap!r})")))


@CODE.pickle(r"builtins\.__import__, os\.mkdir")
def import_and_mkdir(trap: str) -> bytes:
    """Imports a module, and asks for another name beside it: both are told."""
    return checkpoint(tuple_of(call("builtins.__import__", text("os")), call("os.mkdir", text(trap))))


@CODE.pickle(r"subprocess\.getoutput")
def commands_of_python_2(trap: str) -> bytes:
    """Runs a command, by a module that Python 3 has renamed."""
    return checkpoint(call("commands.getoutput", text(f"mkdir {trap}")))


@CODE.pickle(r"subprocess\.Popen")
def popen_as_a_new_object(trap: str) -> bytes:
    """Runs a command, by making an object and not by a call."""
    return checkpoint(name("subprocess.Popen") + tuple_of(b"]" + text("mkdir") + b"a" + text(trap) + b"a") + b"\x81")


@CODE.pickle(r"runpy\.run_path")
def run_path(trap: str) -> bytes:
    """Runs a file."""
    return checkpoint(call("runpy.run_path", text(trap)))


@CODE.pickle(r"pip\.main")
def pip_main(trap: str) -> bytes:
    """Installs something."""
    return checkpoint(call("pip.main", b"]" + text("install") + b"a"))


@CODE.pickle(r"torch\.hub\.load")
def torch_hub_load(trap: str) -> bytes:
    """Downloads code and runs it."""
    return checkpoint(call("torch.hub.load", text("someone/something"), text("model")))


@CODE.pickle(r"torch\.load")
def torch_load_again(trap: str) -> bytes:
    """Reads another file, and that unsafely."""
    return checkpoint(call("torch.load", text(trap)))


@CODE.pickle(r"torch\.jit\.load")
def torch_jit_load(trap: str) -> bytes:
    """Loads TorchScript."""
    return checkpoint(call("torch.jit.load", text(trap)))


@CODE.pickle(r"torch\.utils\.cpp_extension\.load_inline")
def torch_compiles(trap: str) -> bytes:
    """Compiles and runs C++."""
    return checkpoint(call("torch.utils.cpp_extension.load_inline", text("a"), text("int main() {}")))


@CODE.pickle(r"posix\.mkdir")
def a_payload_inside_of_a_payload(trap: str) -> bytes:
    """Would run while the arguments of a harmless class are made."""
    return checkpoint(call("some.project.Thing", call("other.Thing", call("posix.mkdir", text(trap)))))


@CODE.pickle("calls what builtins.getattr returned")
def call_of_an_attribute(trap: str) -> bytes:
    """Reaches a function through the attributes of a harmless class."""
    reached = call("builtins.getattr", call("builtins.getattr", name("numpy.ndarray"), text("base")), text("mkdir"))
    return checkpoint(reached + tuple_of(text(trap)) + b"R")


@CODE.pickle("the inner attribute '__globals__'")
def getattr_of_globals(trap: str) -> bytes:
    """Reaches into a function."""
    return checkpoint(call("builtins.getattr", name("some.function"), text("__globals__")))


@CODE.pickle("sets the inner state of collections.OrderedDict")
def state_of_a_class(trap: str) -> bytes:
    """Changes a class for the whole process."""
    return checkpoint(name("collections.OrderedDict") + b"}" + text("items") + name("some.function") + b"sb")


@CODE.pickle("sets the inner state of a value of the type OrderedDict")
def methods_of_a_dict(trap: str) -> bytes:
    """Replaces the method by which the state dict is read."""
    return checkpoint(state=call("collections.OrderedDict") + b"}" + text("items") + name("some.function") + b"sb")


@CODE.pickle("sets the inner state of a value of the type tensor")
def state_of_a_tensor(trap: str) -> bytes:
    """Gives a tensor other memory, past all checks."""
    return checkpoint(weight=tensor() + tuple_of(storage(4), whole(0), whole_tuple((9,)), whole_tuple((1,))) + b"b")


@CODE.pickle("asks for '.posix.system'")
def a_name_without_a_module(trap: str) -> bytes:
    """Slips a blocked name past a list of modules."""
    return checkpoint(call(".posix.system", text(f"mkdir {trap}")))


@CODE.pickle("uses INST")
def inst_opcode(trap: str) -> bytes:
    """Calls by an old opcode."""
    return checkpoint(b"(" + text(f"mkdir {trap}") + b"iposix\nsystem\n")


@CODE.pickle("uses OBJ")
def obj_opcode(trap: str) -> bytes:
    """Calls by another old opcode."""
    return checkpoint(b"(" + name("some.Class") + text(f"mkdir {trap}") + b"o")


@CODE.pickle("uses STACK_GLOBAL")
def stack_global_opcode(trap: str) -> bytes:
    """Names a function by a newer opcode."""
    return checkpoint(text("posix") + text("system") + b"\x93" + tuple_of(text(f"mkdir {trap}")) + b"R")


@CODE.pickle("uses EXT1")
def ext_opcode(trap: str) -> bytes:
    """Names a function by a number."""
    return checkpoint(b"\x82\x01" + tuple_of(text(trap)) + b"R")


@CODE.pickle("uses NEWOBJ_EX")
def newobj_ex_opcode(trap: str) -> bytes:
    """Makes an object by a newer opcode."""
    return checkpoint(name("some.Class") + tuple_of(text(trap)) + b"}\x92")


@CODE.pickle("with a value of the type list for its arguments")
def arguments_that_are_no_tuple(trap: str) -> bytes:
    """torch would unfold anything into arguments."""
    return checkpoint(name("some.Class") + b"]R")


@CODE.pickle(r"torch\._tensor\._rebuild_from_type_v2")
def rebuild_from_type(trap: str) -> bytes:
    """Has torch call any function that the file gives."""
    return checkpoint(call("torch._tensor._rebuild_from_type_v2", name("some.function"), name("a.B"), b")", b"}"))


@CODE.file(r"shutil\.rmtree")
def code_in_the_list_of_storages(path: Path) -> None:
    """Calls after the checkpoint itself has been read."""
    write_legacy(path, legacy_checkpoint(), keys=b"\x80\x02" + call("shutil.rmtree", text("nowhere")) + b".")


@CODE.file(r"posix\.system")
def a_bare_pickle(path: Path) -> None:
    """A pickle of the oldest protocol in place of a checkpoint."""
    path.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")


# Foreign objects in the wrong places


@CODE.pickle(r"'weight' is no tensor but an object of some\.project\.Tensor")
def a_tensor_of_a_foreign_class(trap: str) -> bytes:
    """Passes itself off as a tensor."""
    return checkpoint(weight=call("some.project.Tensor", storage(4)))


@CODE.pickle(r"'weight' is no tensor but an object of some\.project\.Tensor")
def a_class_for_a_tensor(trap: str) -> bytes:
    """The class itself in a tensor's place."""
    return checkpoint(weight=name("some.project.Tensor"))


@CODE.pickle(r"its state_dict is an object of some\.project\.State")
def a_state_dict_of_a_foreign_class(trap: str) -> bytes:
    """A table that nobody knows."""
    return checkpoint(state=call("some.project.State"))


@CODE.pickle(r"it is an object of some\.project\.Net")
def a_whole_model(trap: str) -> bytes:
    """The model in place of its tensors."""
    return b"\x80\x02" + name("some.project.Net") + b")\x81}" + text("training") + b"\x88sb."


@CODE.pickle(r"fills what some\.project\.List returned like a list")
def a_foreign_list(trap: str) -> bytes:
    """A list whose class is not known."""
    return checkpoint(call("some.project.List") + b"Na")


@CODE.pickle(r"fills what collections\.defaultdict returned like a dict")
def a_foreign_dict(trap: str) -> bytes:
    """A dict whose class is not known."""
    return checkpoint(call("collections.defaultdict", name("builtins.list")) + text("a") + b"Ns")


@CODE.pickle("broken", unsafe=False)
def a_pickle_of_stop_alone(trap: str) -> bytes:
    """Nothing at all."""
    return b"."
