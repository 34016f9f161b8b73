"""MLflow as a projection of the store, and the only MLflow of the project.

`exporter` decides which study is written when, and `due` is its policy. `study_runs` writes the runs of one study:
`runs` says what they hold, `summary` and `files` what a person reads there, `limits` how text gets into MLflow's
limits. `leftovers` removes what a deleted study has left. `server` speaks to MLflow and turns its errors into ours; no
name of MLflow leaves this folder.

Everything is written at least once, from watermarks that the store keeps, and twice is the same as once: a metric is
known by run, key, step and time, and a run by the tags `samstudy.study_id` and `samstudy.trial_id`.
"""
