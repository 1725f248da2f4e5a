"""From a model to a longer one that serves: the plan, its recipe, the exports, the page.

plan = planning.make(request, folder)   what is done and how long it takes; stored, and read again
code = run.run(plan, folder)            all of it, or the rest
"""
