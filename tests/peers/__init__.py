"""Other people's tests, run over this project: `make peers`, or `python -m tests.peers [NAME ...]`: docs/peers.md."""
