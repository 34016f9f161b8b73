"""The study store: the truth about every study, and the only SQL of the project.

`studies` is what the API reads and writes, `driving` what a study's driver may write under its lease, `reconciling`
what the controller does about leases, `exporting` the watermarks of the projection into MLflow.
"""
