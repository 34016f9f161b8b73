"""How a study is executed: the only Ray and Optuna of the project.

`jobs` submits drivers, `driver` is the process of one study, `progress` decides what it runs next, `algorithms` propose
points, `searcher` and `schedulers` connect these to Ray Tune, `recorder` writes what happens into the store, `patience`
waits for that, `trial` is Tune's view of what a worker runs, `execution` the training itself.
"""
