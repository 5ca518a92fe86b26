"""Configuration and the command line: Hydra with dataclasses, and errors that fit in one sentence.

A recipe hands `launch` its schema (a dataclass) and its groups (option name -> dataclass); every default is written
once, in the dataclass of the file that it configures. Hydra is imported inside functions, so the dataclasses serve
without it.
"""

import difflib
import importlib
import os
import pkgutil
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

USER_ERROR = 2  # the exit code of everything that the user can mend on the command line

# Hydra's own folders and logging would litter the working directory; the run folder is ours.
_QUIET = [
    "hydra.run.dir=.",
    "hydra.sweep.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


def classes_in(package: str) -> dict[str, type]:
    """The class with a nested `Config` that each file of a package defines, by file name: the values of a group."""
    found = {}
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and "Config" in vars(value):
                found[info.name] = value
    return found


def find(package: str, name: str) -> type:
    """The class of `classes_in(package)` with that file name; ValueError names the nearest ones."""
    classes = classes_in(package)
    if name not in classes:
        raise ValueError(f"{package.rsplit('.', 1)[-1]}: no {name!r}{nearest(name, classes)}")
    return classes[name]


def nearest(name: str, known: Any) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'a'? (known: a, b)"."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    guess = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return f"{guess} (known: {', '.join(sorted(known))})"


def launch(
    main: Callable[[Any], None],
    schema: type,
    groups: Mapping[str, Mapping[str, type]],
    presets: Path | None = None,
) -> None:
    """Composes the configuration from the command line and calls `main` with an instance of `schema`.

    Args:
        main: the recipe. ValueError, FileNotFoundError and ImportError from it are the user's to mend.
        schema: dataclass with a field for each group, and the Hydra defaults list in a field `defaults`.
        groups: for each group, its options and their dataclasses.
        presets: folder of YAML files, the options of the group `preset`.

    Exits with code 2 and one sentence on stderr (printed by the first rank of a node alone) for a user's error;
    `SSL_FAST_TRACEBACK=1` shows the frames too.
    """
    try:
        import hydra
    except ImportError as error:
        raise SystemExit("recipes need hydra-core: pip install ssl_fast[recipes]") from error
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints its own report and exits with 1
    _register(schema, groups, presets, sys.argv[1:])
    asked = not {"-h", "--help"}.isdisjoint(sys.argv[1:])
    chosen = [word for word in sys.argv[1:] if not word.startswith("-")]
    sys.argv[1:] = sys.argv[1:] + _QUIET

    wrong: list[Exception] = []  # Hydra adds a line of its own to what it sees raised
    begun = False

    @hydra.main(version_base="1.3", config_path=None, config_name=schema.__name__)
    def entry(config: Any) -> None:
        nonlocal begun
        begun = True
        try:
            _refuse_additions(config, schema, groups)
            main(OmegaConf.to_object(config))
        except (ValueError, FileNotFoundError, ImportError) as error:
            wrong.append(error)

    try:
        if asked:
            print(_help(str(main.__globals__["__doc__"]), chosen, schema, groups, presets), flush=True)
        else:
            entry()
    except BrokenPipeError:
        if begun:
            raise
        _nobody_reads()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_sentence(error, schema, groups, presets), error)
    if wrong:
        _fail(str(wrong[0]), wrong[0])


def _register(
    schema: type, groups: Mapping[str, Mapping[str, type]], presets: Path | None, words: Sequence[str]
) -> None:
    """Tells Hydra of all options, and of the presets that the words name: to read the others takes half a second."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    store.store(name=schema.__name__, node=schema)
    for group, options in groups.items():
        for name, node in options.items():
            store.store(group=group, name=name, node=node)
    named = " ".join(word for word in words if "preset=" in word)
    files = sorted(presets.glob("*.yaml")) if presets and named else []
    for file in [file for file in files if file.stem in named] or files:  # all: Hydra refuses a name that is none
        store.store(group="preset", name=file.stem, node=OmegaConf.load(file), package="_global_")


def _help(
    text: str, chosen: list[str], schema: type, groups: Mapping[str, Mapping[str, type]], presets: Path | None
) -> str:
    """What the recipe does, the options of its groups, and all settings as `chosen` words make them.

    Hydra's own copies the whole store for each preset, which took half a minute.
    """
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize(config_path=None, version_base="1.3"):
        config = hydra.compose(schema.__name__, chosen)
    options = {group: list(known) for group, known in groups.items()}
    if presets:
        options["+preset"] = sorted(file.stem for file in presets.glob("*.yaml"))
    choices = "\n".join(f"{group}: {', '.join(known)}" for group, known in options.items())
    settings = OmegaConf.to_yaml(config)
    return f"{text}\nChoices, as group=option:\n\n{choices}\n\nSettings, as key.inner=value:\n\n{settings}"


def _refuse_additions(config: Any, schema: type, groups: Mapping[str, Mapping[str, type]]) -> None:
    """Hydra's `+key=value` adds what no dataclass has, and nobody would read it."""
    from omegaconf import DictConfig, OmegaConf

    def walk(node: DictConfig, prefix: str) -> None:
        known = {item.name for item in fields(OmegaConf.get_type(node))}  # type: ignore[arg-type]
        for key in node:
            name = f"{prefix}{key!s}"
            if key not in known:
                raise ValueError(_unknown_key(name, schema, groups))
            if isinstance(node[key], DictConfig):
                walk(node[key], f"{name}.")

    walk(config, "")


def _nobody_reads() -> None:
    """Ends as programs do whose reader (`| head`) has left; what stdout still holds must not be tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _fail(sentence: str, error: Exception) -> None:
    if os.environ.get("SSL_FAST_TRACEBACK"):
        raise error
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # torchrun ends all ranks when the first one exits: let rank 0 speak
    sys.exit(USER_ERROR)


def _sentence(error: Exception, schema: type, groups: Mapping[str, Mapping[str, type]], presets: Path | None) -> str:
    """What Hydra or OmegaConf found wrong, in one sentence with the nearest known names."""
    text = str(error)
    cause = error.__cause__
    if option := re.search(r"Could not (?:find|load|override) '(\w+)/([^']+)'", text):
        group, name = option.groups()
        known = list(groups.get(group, ())) or [file.stem for file in (presets.glob("*.yaml") if presets else ())]
        return f"{group}: no {name!r}{nearest(name, known)}"
    if key := re.search(r"Could not (?:override|append to config.*?) '?\+?([\w.]+)'?", text):
        cause_text = str(cause) if cause else ""
        if "not in" in cause_text or cause is None:
            return _unknown_key(key.group(1), schema, groups)
    if full_key := re.search(r"full_key: ([\w.\[\]]+)", f"{text}\n{cause}"):
        first = str(cause or error).splitlines()[0]
        return f"{full_key.group(1)}: {first}"
    return text.splitlines()[0] if text else type(error).__name__


def _unknown_key(key: str, schema: type, groups: Mapping[str, Mapping[str, type]]) -> str:
    known = {*_keys(schema)}
    for group, options in groups.items():
        for node in options.values():  # they share names
            known |= {f"{group}.{name}" for name in _keys(node)}
    close = difflib.get_close_matches(key, sorted(known), n=2, cutoff=0.5)
    guess = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return f"no setting {key!r}{guess} (--help lists them all)"


def _keys(node: type) -> list[str]:
    """All dotted keys of a dataclass and the dataclasses inside it."""
    keys = []
    for item in fields(node):
        if item.name == "defaults":
            continue
        keys.append(item.name)
        if isinstance(item.type, type) and is_dataclass(item.type):
            keys += [f"{item.name}.{key}" for key in _keys(item.type)]
    return keys
