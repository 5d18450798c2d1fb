-- Which request of B stands beside each of A.
SELECT DISTINCT a_run_id, request_id AS a_request_id, b_run_id, b_request_id FROM pairs;
