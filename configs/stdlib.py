"""The texts of the model that ships with the project: Python's standard library, with files of it held out."""

import sysconfig

STDLIB = sysconfig.get_paths()["stdlib"]
# Held out for evaluation: long files that exist in every Python from 3.11 on.
HELD_OUT = (
    "argparse.py",
    "asyncio/base_events.py",
    "configparser.py",
    "difflib.py",
    "http/cookiejar.py",
    "inspect.py",
    "ipaddress.py",
    "logging/handlers.py",
    "mailbox.py",
    "pickle.py",
    "shutil.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
    "xml/etree/ElementTree.py",
)
# Not in every installation, not text, tables, or not part of the library.
LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "__pycache__")


def texts(section):
    """Sets the files of a data section: the held-out ones for evaluation, the rest for training."""
    section.train_files = (f"{STDLIB}/**/*.py",)
    section.eval_files = tuple(f"{STDLIB}/{name}" for name in HELD_OUT)
    folders = tuple(f"**/{name}/**" for name in LEFT_OUT)
    section.exclude = section.eval_files + folders + ("**/_sysconfigdata*", "**/config-*/**")
