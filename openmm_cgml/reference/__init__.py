"""All-atom reference runs in OpenMM that write coarse-grained datasets as they go.

`run.run_reference` does a whole run from a user's files; `reporter.DatasetReporter` does the same
for a script of the user's own.
"""
