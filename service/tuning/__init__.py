"""How a study is executed: the only Ray and Optuna of the project.

`jobs` submits drivers, `driver` is the process of one study, `progress` decides what it runs next: its trials
(`trial_progress`) come from the search (`search_progress`), for which `algorithms` propose points, and from what is
confirmed after it (`confirming`), until it ends (`endings`). `searcher` and `schedulers` connect this to Ray Tune,
`recorder` writes what happens into the store, `patience` waits for that, `trial` is Tune's view of what a worker runs,
`execution` the training itself.
"""
