SELECT a_run_id, request_id, output_index, d FROM explained WHERE isfinite(d)
