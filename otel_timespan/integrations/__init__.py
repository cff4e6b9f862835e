"""Bridges to other libraries, each imported by its own name; none of them is needed by the rest."""
