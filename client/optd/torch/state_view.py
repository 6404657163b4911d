"""What `optimizer.state` is: a live view of the state that the server holds."""

from collections import OrderedDict, defaultdict
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from optd.torch.state_source import StateSource, TorchState

K = TypeVar("K")


class _LikeADict(dict[K, Any]):
    """A subclass of dict whose own storage stays empty: all methods use those that a subclass defines.

    C code that expects a dict calls `keys()` on a subclass that defines `__iter__`.
    """

    def pop(self, key: Any, *default: Any) -> Any:
        """Removes a key and returns its value; `default` if there is no such key."""
        if key not in self:
            if default:
                return default[0]
            raise KeyError(key)
        value = self[key]
        value = value.copy() if isinstance(value, dict) else value
        del self[key]
        return value

    def popitem(self) -> tuple[K, Any]:
        """Removes the last key and returns it with its value."""
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("the state is empty")

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Assigns `default` to a key that does not exist."""
        if key not in self:
            self[key] = default
        return self[key]

    def keys(self) -> KeysView[K]:  # type: ignore[override]
        """The keys that there are now."""
        return KeysView(self)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key that is there, else `default`."""
        return self[key] if key in self else default  # noqa: SIM401 - this is what `get` is

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Assigns all of another mapping's items."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def __copy__(self) -> Any:
        return self.copy()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.copy()) == dict(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


class StateOnServer(_LikeADict[torch.Tensor], defaultdict[torch.Tensor, Any]):
    """The state of an optimizer's parameters by parameter, as torch's `defaultdict` has it, read when asked for.

    Its truth value is whether the server holds state or step counts; its length is the number of parameters with state.
    As in torch, `state[p]` of a parameter without state is empty; unlike in torch, reading it changes nothing. Reading
    blocks until the server answers. `state[p]["exp_avg"]` reads that entry alone, `items()` and `values()` read
    everything at once. What has been read is cached until the optimizer steps, pulls or loads; only then do steps of
    other workers show.

    Assigning sends: `state[p] = {...}`, `state[p]["exp_avg"] = tensor`, `del state[p]`, `clear()`. Other parameters
    keep their state, and nothing is sent if the server has this state already.

    The tensors are copies of the server's state. Changing them in place changes nothing there; the next step warns of
    changes that torch has counted.

    It is a dict only by its type: `copy` and `pickle` make torch's `defaultdict(dict)` of it.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A view of a source; for other arguments a `defaultdict`, for functions that rebuild a mapping by its type."""
        if not args or not isinstance(args[0], StateSource):
            return defaultdict(*(args or (dict,)), **kwargs)
        return super().__new__(cls)

    def __init__(self, source: StateSource) -> None:
        defaultdict.__init__(self, dict)
        self._source = source

    def __getitem__(self, tensor: torch.Tensor) -> "StateOfParameter":
        return StateOfParameter(self._source, tensor)

    def __setitem__(self, tensor: torch.Tensor, state: Mapping[str, Any]) -> None:
        self._source.write(tensor, state)

    def __delitem__(self, tensor: torch.Tensor) -> None:
        if tensor not in self:
            raise KeyError(tensor)
        self._source.write(tensor, {})

    def __contains__(self, tensor: object) -> bool:
        return self._source.has_state(tensor)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._source.holders())

    def __reversed__(self) -> Iterator[torch.Tensor]:
        return reversed(self._source.holders())

    def __len__(self) -> int:
        return len(self._source.holders())

    def __bool__(self) -> bool:
        return not self._source.is_empty()

    def items(self) -> ItemsView[torch.Tensor, Any]:  # type: ignore[override]
        """The parameters that have state, with their states; reads everything at once."""
        self._source.read_all()
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """The states; all are read at once."""
        self._source.read_all()
        return ValuesView(self)

    def clear(self) -> None:
        """Drops all state on the server: the next step begins without state."""
        self._source.replace({})

    def copy(self) -> defaultdict[torch.Tensor, Any]:  # type: ignore[override]
        """The server's state now, in plain dicts."""
        return defaultdict(dict, {tensor: dict(state) for tensor, state in self.items()})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return defaultdict, (dict, dict(self.copy()))

    def __repr__(self) -> str:
        return f"<{self._source}>"


class StateOfParameter(_LikeADict[str]):
    """The state of one parameter; see `StateOnServer`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A view of a source; for other arguments a dict, for functions that rebuild a mapping by its type."""
        return super().__new__(cls) if args and isinstance(args[0], StateSource) else dict(*args, **kwargs)

    def __init__(self, source: StateSource, tensor: torch.Tensor) -> None:
        dict.__init__(self)
        self._source = source
        self._tensor = tensor

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return self._source.read(self._tensor, [name])[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._source.write_entry(self._tensor, name, value)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._source.write_entry(self._tensor, name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._source.names(self._tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names(self._tensor))

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._source.names(self._tensor))

    def __len__(self) -> int:
        return len(self._source.names(self._tensor))

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """The entries, read at once."""
        self._read()
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """The entries' values, read at once."""
        self._read()
        return ValuesView(self)

    def _read(self) -> None:
        self._source.read(self._tensor, self._source.names(self._tensor))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Sends the state with these entries put in."""
        self._source.write(self._tensor, {**self.copy(), **dict(*args, **kwargs)})

    def clear(self) -> None:
        """Drops the parameter's state on the server."""
        self._source.write(self._tensor, {})

    def copy(self) -> TorchState:
        """The server's state of the parameter now, in a plain dict."""
        return dict(self.items())

    def __reduce_ex__(self, protocol: Any) -> Any:
        # torch.load(weights_only=True) allows this class among all dicts.
        return OrderedDict, (), None, None, iter(self.copy().items())

    def __repr__(self) -> str:
        return repr(self.copy())


# torch's tree functions look at the exact type, and would treat a view as a leaf.
pytree.register_pytree_node(
    StateOnServer,
    lambda view: (list(view.values()), list(view)),
    lambda values, keys: defaultdict(dict, zip(keys, values, strict=True)),
)
pytree.register_pytree_node(
    StateOfParameter,
    lambda view: (list(view.values()), list(view)),
    lambda values, keys: dict(zip(keys, values, strict=True)),
)
