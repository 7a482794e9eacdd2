#!/usr/bin/env python3
"""Fits the polynomials of cpu/x86/{act,softmax}.rs and prints them, highest power first, with the error they reach. Needs mpmath, numpy.

exp:  (e^r − 1 − r) / r² on |r| ≤ ln 2 / 2, degree 5, after x = n·ln 2 + r.
tail: Q(x) = erfc(x / √2) / 2 by 16 polynomials of degree 4 in r = 2.75 x − i, on |r| ≤ 1/2, for i = 0..15; a row per power.
erfc: P of erfc(z) = t · exp(−z² + P(t)), t = 1 / (1 + z/2), on 0 ≤ z < ∞, degree 9.
exp2: (2^r − 1) / r on |r| ≤ 1/2, degree 5.

All are interpolations at Chebyshev nodes, which is within a small factor of the best fit, computed with 60 digits.
"""
import mpmath as mp
import numpy as np

mp.mp.dps = 60


def fit(f, low, high, degree):
    n = degree + 1
    nodes = [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]
    matrix = mp.matrix([[x ** (n - 1 - j) for j in range(n)] for x in nodes])
    return list(mp.lu_solve(matrix, mp.matrix([f(x) for x in nodes])))


def horner(coefficients, x):
    y = mp.mpf(0)
    for c in coefficients:
        y = y * x + c
    return y


def show(name, coefficients, error):
    print(f"{name}: relative error {mp.nstr(error, 3)} before rounding")
    print("  ", ", ".join(repr(float(np.float32(float(c)))) for c in coefficients))


half = mp.log(2) / 2
tail = lambda r: (mp.exp(r) - 1 - r) / r**2 if r else mp.mpf(1) / 2
p = fit(tail, -half, half, 5)
grid = [half * (2 * mp.mpf(k) / 400 - 1) for k in range(401)]
show("exp", p, max(abs((1 + r + r * r * horner(p, r)) / mp.exp(r) - 1) for r in grid))


def log_erfc(t):
    if t < mp.mpf(10) ** -20:
        t = mp.mpf(10) ** -20
    z = 2 * (1 / t - 1)
    if z > 50:  # erfc(z) ~ exp(−z²) / (z sqrt(pi)) · (1 − 1/(2 z²) + 3/(4 z⁴))
        return mp.log((1 - 1 / (2 * z**2) + 3 / (4 * z**4)) / (z * mp.sqrt(mp.pi)) / t)
    return mp.log(mp.erfc(z)) + z * z - mp.log(t)


p = fit(log_erfc, mp.mpf(0), mp.mpf(1), 9)
grid = [mp.mpf(k) / 600 for k in range(1, 601)]
show("erfc", p, max(abs(mp.exp(horner(p, t) - log_erfc(t)) - 1) for t in grid))

rows, error = [], mp.mpf(0)
for i in range(16):
    tail = lambda r: mp.erfc((i + r) / mp.mpf("2.75") / mp.sqrt(2)) / 2
    low = mp.mpf(0) if i == 0 else -mp.mpf(1) / 2
    p = fit(tail, low, mp.mpf(1) / 2, 4)
    rows.append([float(np.float32(float(c))) for c in p])
    grid = [low + (mp.mpf(1) / 2 - low) * k / 40 for k in range(41)]
    error = max(error, max(abs((i + r) / mp.mpf("2.75") * (horner(p, r) - tail(r))) for r in grid))
print(f"tail: error of x Q(x) {mp.nstr(error, 3)} before rounding")
for j in range(5):
    print("  ", ", ".join(repr(row[j]) for row in rows))

p = fit(lambda r: mp.expm1(r * mp.log(2)) / r if abs(r) > mp.mpf(10) ** -40 else mp.log(2), -mp.mpf(1) / 2, mp.mpf(1) / 2, 5)
grid = [mp.mpf(k) / 400 - mp.mpf(1) / 2 for k in range(401)]
show("exp2", p, max(abs((1 + r * horner(p, r)) / mp.mpf(2) ** r - 1) for r in grid))
