"""How a study is executed: the only Ray of the project.

`jobs` submits drivers, `driver` is the process of one study, `progress` decides what it runs next, `algorithms` propose
points, `searcher`, `reporting` and `schedulers` connect these to Ray Tune, `trial` is what a worker runs.
"""
