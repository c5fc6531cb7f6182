"How the site is made from nbdev's processed pages: one module a step, each a function of files."
