"""What results say: aggregation over seeds, significance, surfaces and plots, all pure functions.

`aggregation` gives mean ± std (n) of every configuration, `comparison` says whether two of them differ, `surface`
arranges them over two parameters, such as λ × ρ, and `plots` draws that.
"""
