"""These are distributions of their own: `tests/integration/test_thirdparty.py` installs them, and
runs their tests as their authors would."""

collect_ignore_glob = ["dlr-*"]
