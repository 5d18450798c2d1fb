SELECT avg(d * d) FROM explained WHERE isfinite(d)
