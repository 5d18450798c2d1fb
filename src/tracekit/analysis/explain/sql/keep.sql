-- What `explained` is made of, in memory; the view of tokens over it leaves out what is one number throughout.
CREATE TEMP TABLE _explained_requests AS FROM main._explained_requests;
CREATE TEMP TABLE _kept_tokens AS FROM main._valued_tokens;
