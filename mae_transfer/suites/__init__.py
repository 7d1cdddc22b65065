"""Suites: pre-trainings x backbones x tasks x protocols x seeds in one YAML file, made by one command.

`config.py` is the file, `plan.py` the runs that it asks for, `state.py` what of them is there, `runner.py` makes
the rest through a launcher (`launcher.py`): `local.py` (this machine) or `cluster.py` (SLURM).
"""
