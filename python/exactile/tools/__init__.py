"""Tools beside the library: the command line, the benchmark, and what judges its results.

`import exactile` loads none of them.
"""
