/* The hook of vllm_hook.py in C: the same two methods, statement by statement.

   What differs is the cost: a step of plain decode runs no Python code of ours. What is not plain
   is asked of the same account, in Python. Read vllm_hook.py first: what it says is not repeated.
   What it leaves in tuples is here in objects of few bytes, which give the same tuples when they
   are iterated, on the writer's thread.
   The tests run everything through both. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <time.h>

#if PY_VERSION_HEX < 0x030D0000
#define PyObject_GetOptionalAttr _PyObject_LookupAttr /* its name before it was public */
#endif

/* The members that hold an object: all or, before __init__ and after tp_clear, none. */
#define OBJECTS(X)                                                                              \
    X(account) X(inner_schedule) X(inner_update) X(scheduler) X(waiting) X(also_waiting)        \
    X(free_blocks) X(watched) X(queue) X(ids) X(pending) X(carried) X(stamp_name)                \
    X(stamp_clock) X(now) X(length)

/* Attributes and methods that are looked up, by their interned names. Those that every step needs
   come first, side by side in memory. */
#define NAMES(X)                                                                                \
    X(scheduled_cached_reqs) X(num_computed_tokens) X(num_scheduled_tokens)                     \
    X(preempted_req_ids) X(total_num_scheduled_tokens) X(running) X(finished_req_ids)           \
    X(num_free_blocks) X(outputs) X(new_token_ids) X(scheduled_new_reqs) X(resumed_req_ids)     \
    X(req_id) X(requests) X(streaming_queue) X(is_prefill_chunk) X(num_output_tokens)           \
    X(num_tokens) X(scheduled_spec_decode_tokens) X(carry) X(chunks) X(continues) X(drafts)     \
    X(failed) X(follow) X(is_late) X(lost) X(model_runner_output) X(not_scheduled) X(put)       \
    X(request_ids) X(scheduler_output) X(without_result)

/* ns of the monotonic clock, or that there is none. */
typedef long long Time;
#define NO_TIME LLONG_MIN

typedef struct {
    PyObject_HEAD
#define X(name) PyObject *name;
    OBJECTS(X)
#undef X
    Time previous;
    Py_ssize_t room;
    lenfunc waiting_length;
    char has_workers;
    char has_request_ids;
    char reads_system_clock;
} Hook;

/* collections.deque, looked up once. Its length is not that of vLLM's subclass, which has a __len__
   in Python. */
static PyTypeObject *deque_type;
static lenfunc deque_length;
static PyObject *deque_append, *deque_appendleft, *deque_popleft;

static struct {
#define X(name) PyObject *name;
    NAMES(X)
#undef X
} name_of __attribute__((aligned(64)));

/* ---- Small steps: each returns NULL or -1 with an exception set where it fails. ---- */

/* Takes the int; NO_TIME, with an exception, if it is none. */
static Time
as_time(PyObject *value)
{
    Time time = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return time == -1 && PyErr_Occurred() ? NO_TIME : time;
}

static Time
now(Hook *self)
{
#ifdef __linux__
    /* What time.monotonic_ns does, without the call. */
    if (self->reads_system_clock) {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return (Time)time.tv_sec * 1000000000LL + time.tv_nsec;
    }
#endif
    return as_time(PyObject_CallNoArgs(self->now));
}

/* None, where there is no time. */
static PyObject *
time_as_object(Time time)
{
    return time == NO_TIME ? Py_NewRef(Py_None) : PyLong_FromLongLong(time);
}

static int
is_true(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    int answer = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return answer;
}

static Py_ssize_t
size(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    Py_ssize_t answer = value == NULL ? -1 : PyObject_Size(value);
    Py_XDECREF(value);
    return answer;
}

/* Takes the int. Only where an exception is set does -1 say that it was none. */
static Py_ssize_t
as_number(PyObject *value)
{
    Py_ssize_t answer = value == NULL ? -1 : PyLong_AsSsize_t(value);
    Py_XDECREF(value);
    return answer;
}

static Py_ssize_t
number(PyObject *object, PyObject *name)
{
    return as_number(PyObject_GetAttr(object, name));
}

static int
is_error(Py_ssize_t number)
{
    return number == -1 && PyErr_Occurred();
}

/* Calls a method for what it does: takes the result. */
static int
done(PyObject *result)
{
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

#define CALL(object, name, ...) PyObject_CallMethodObjArgs(object, name, __VA_ARGS__, NULL)

static int
append(PyObject *deque, PyObject *item)
{
    PyObject *both[] = {deque, item};
    return done(PyObject_Vectorcall(deque_append, both, 2, NULL));
}

/* Takes away the exception that is set; NULL, and it stays, if it is a BaseException only. */
static PyObject *
caught(void)
{
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_SystemError, "the hook failed without an exception");
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
}

/* Makes an exception, which it takes, the context of the one that is set. */
static void
raise_after(PyObject *type, PyObject *value, PyObject *traceback)
{
    PyObject *new_type, *new_value, *new_traceback;
    PyErr_Fetch(&new_type, &new_value, &new_traceback);
    PyErr_NormalizeException(&new_type, &new_value, &new_traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    PyException_SetContext(new_value, value);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    PyErr_Restore(new_type, new_value, new_traceback);
}

/* Finds an argument by its place or its name; borrowed, None where it is not there. */
static PyObject *
argument(PyObject *const *args, Py_ssize_t nargs, PyObject *names, Py_ssize_t place,
         PyObject *name)
{
    if (place < nargs)
        return args[place];
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        if (PyUnicode_Compare(PyTuple_GET_ITEM(names, i), name) == 0)
            return args[nargs + i];
    }
    return Py_None;
}

/* Makes a tuple of new references, which it takes; NULL if one of them is. */
static PyObject *
tuple_of(PyObject **items, Py_ssize_t length)
{
    PyObject *tuple = PyTuple_New(length);
    int is_whole = tuple != NULL;
    for (Py_ssize_t i = 0; i < length; i++) {
        is_whole &= items[i] != NULL;
        if (tuple != NULL)
            PyTuple_SET_ITEM(tuple, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    if (!is_whole)
        Py_CLEAR(tuple);
    return tuple;
}

/* Makes an iterator over new references, which it takes. */
static PyObject *
iterator_of(PyObject **items, Py_ssize_t length)
{
    PyObject *tuple = tuple_of(items, length);
    PyObject *iterator = tuple == NULL ? NULL : PyObject_GetIter(tuple);
    Py_XDECREF(tuple);
    return iterator;
}

/* Only a hook that the garbage collector has cleared, or that was never made, has none. */
static int
has_account(Hook *self)
{
    if (self->account == NULL)
        PyErr_SetString(PyExc_RuntimeError, "this hook is gone");
    return self->account != NULL;
}

/* ---- What is left for the writer ---- */

/* A batch when it is scheduled. None of these objects can refer to it: it needs no garbage
   collector. */
typedef struct {
    PyObject_HEAD
    Time began, ended;
    Py_ssize_t num_inflight, num_running, num_waiting, num_free_blocks, num_reqs, num_finished;
    PyObject *computed, *events, *decode, *ids;
} Scheduled;

/* A batch when it ends. */
typedef struct {
    PyObject_HEAD
    Time previous, ready, taken, updated;
    Py_ssize_t generated;
    PyObject *id, *drafts;
    Scheduled *batch;
} Measurement;

static void
scheduled_dealloc(Scheduled *self)
{
    Py_XDECREF(self->computed);
    Py_XDECREF(self->events);
    Py_XDECREF(self->decode);
    Py_XDECREF(self->ids);
    PyObject_Free(self);
}

static void
measurement_dealloc(Measurement *self)
{
    Py_XDECREF(self->id);
    Py_XDECREF(self->drafts);
    Py_XDECREF(self->batch);
    PyObject_Free(self);
}

static PyObject *
scheduled_iter(Scheduled *self)
{
    PyObject *items[] = {
        PyLong_FromLongLong(self->began),
        PyLong_FromLongLong(self->ended),
        PyLong_FromLongLong(self->ended),
        PyLong_FromSsize_t(self->num_inflight),
        PyLong_FromSsize_t(self->num_running),
        PyLong_FromSsize_t(self->num_waiting),
        PyLong_FromSsize_t(self->num_free_blocks),
        PyLong_FromSsize_t(self->num_reqs),
        Py_NewRef(self->computed),
        PyLong_FromSsize_t(self->num_finished),
        Py_NewRef(self->events),
        Py_NewRef(self->decode),
        Py_NewRef(self->ids),
    };
    return iterator_of(items, Py_ARRAY_LENGTH(items));
}

static PyObject *
measurement_iter(Measurement *self)
{
    PyObject *items[] = {
        Py_NewRef(self->id),
        time_as_object(self->previous),
        PyLong_FromLongLong(self->ready),
        PyLong_FromLongLong(self->taken),
        PyLong_FromLongLong(self->updated),
        Py_NewRef((PyObject *)self->batch),
        PyLong_FromSsize_t(self->generated),
        Py_NewRef(self->drafts),
    };
    return iterator_of(items, Py_ARRAY_LENGTH(items));
}

static PyTypeObject ScheduledType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sched_profiler.engines._vllm_hook.Scheduled",
    .tp_doc = "A batch as the engine's thread leaves it when it is scheduled.",
    .tp_basicsize = sizeof(Scheduled),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)scheduled_dealloc,
    .tp_iter = (getiterfunc)scheduled_iter,
};

static PyTypeObject MeasurementType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sched_profiler.engines._vllm_hook.Measurement",
    .tp_doc = "All that is known of a batch when it ends.",
    .tp_basicsize = sizeof(Measurement),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)measurement_dealloc,
    .tp_iter = (getiterfunc)measurement_iter,
};

/* ---- schedule ---- */

enum { SURPLUS = 1 }; /* where it is in events */

/* Makes the batch of a step with tokens; it shares in `computed`, `events` and `decode`. */
static Scheduled *
batch_of(Hook *self, PyObject *pending, PyObject *output, Time began, Time ended,
         Py_ssize_t num_reqs, PyObject *computed, PyObject *events, PyObject *decode)
{
    Scheduled *batch = PyObject_New(Scheduled, &ScheduledType);
    if (batch == NULL)
        return NULL;
    Py_ssize_t num_also_waiting = 0;
    batch->began = began;
    batch->ended = ended;
    batch->num_inflight = deque_length(pending);
    batch->num_reqs = num_reqs;
    batch->computed = Py_NewRef(computed);
    batch->events = Py_NewRef(events);
    batch->decode = Py_NewRef(decode);
    batch->ids = NULL;
    if ((batch->num_running = size(self->scheduler, name_of.running)) < 0
        || (batch->num_waiting = self->waiting_length(self->waiting)) < 0
        || (num_also_waiting = self->waiting_length(self->also_waiting)) < 0
        || is_error(batch->num_free_blocks = number(self->free_blocks, name_of.num_free_blocks))
        || (batch->num_finished = size(output, name_of.finished_req_ids)) < 0)
        Py_CLEAR(batch);
    else {
        batch->num_waiting += num_also_waiting;
        batch->ids = self->has_request_ids
                         ? CALL(self->account, name_of.request_ids, output, events)
                         : Py_NewRef(Py_None);
        if (batch->ids == NULL)
            Py_CLEAR(batch);
    }
    return batch;
}

/* Follows a step with tokens, of which the account may know events. */
static int
begin_batch(Hook *self, PyObject *pending, PyObject *output, Time began, Time ended,
            Py_ssize_t total, Py_ssize_t num_reqs, PyObject *computed, PyObject *events)
{
    Py_ssize_t surplus = 0;
    if (events != Py_None && is_error(surplus = as_number(PySequence_GetItem(events, SURPLUS))))
        return -1;
    PyObject *decode = Py_None, *both = NULL;
    if (total - num_reqs != surplus) {
        both = CALL(self->account, name_of.chunks, output, events);
        if (both == NULL || !PyArg_ParseTuple(both, "OO", &events, &decode)) {
            Py_XDECREF(both);
            return -1;
        }
    }
    Scheduled *batch =
        batch_of(self, pending, output, began, ended, num_reqs, computed, events, decode);
    Py_XDECREF(both);
    PyObject *pair = batch == NULL ? NULL : PyTuple_Pack(2, output, batch);
    Py_XDECREF(batch);
    int status = pair == NULL ? -1 : append(pending, pair);
    Py_XDECREF(pair);
    return status;
}

/* ---- schedule: a step in which requests come, go, or are in prefill ---- */

/* What a batch holds of prefill, added up request by request. */
typedef struct {
    PyObject *chunks; /* tokens by request, of the whole batch */
    PyObject *prefill;
    Py_ssize_t num_tokens, context;
} Prefill;

static int
add_prefill(Prefill *sums, PyObject *req_id, PyObject *chunk, Py_ssize_t num_tokens,
            Py_ssize_t computed)
{
    sums->num_tokens += num_tokens;
    sums->context += computed;
    return PyDict_SetItem(sums->prefill, req_id, chunk);
}

/* Adds one of those watched, if it is in the batch and in prefill; tells whether it was its last
   chunk. */
static int
add_watched(Prefill *sums, PyObject *req_id, PyObject *request)
{
    int status = -1;
    PyObject *chunk = Py_XNewRef(PyDict_GetItemWithError(sums->chunks, req_id));
    if (chunk == NULL)
        return PyErr_Occurred() ? -1 : 0;
    Py_ssize_t num_tokens = PyLong_AsSsize_t(chunk), computed, num_outputs, known = 0;
    if (is_error(num_tokens) || is_error(computed = number(request, name_of.num_computed_tokens))
        || is_error(num_outputs = number(request, name_of.num_output_tokens))
        || (num_outputs != 0 && is_error(known = number(request, name_of.num_tokens))))
        goto end;
    computed -= num_tokens;
    if ((num_outputs == 0 || known - computed > 1)
        && add_prefill(sums, req_id, chunk, num_tokens, computed) < 0)
        goto end;
    int goes_on = is_true(request, name_of.is_prefill_chunk);
    status = goes_on < 0 ? -1 : !goes_on;
end:
    Py_DECREF(chunk);
    return status;
}

static int
add_all_watched(Hook *self, Prefill *sums)
{
    PyObject *last_chunks = NULL, *req_id, *request;
    Py_ssize_t place = 0;
    int is_last = 0;
    while (is_last >= 0 && PyDict_Next(self->watched, &place, &req_id, &request)) {
        Py_INCREF(req_id);
        Py_INCREF(request);
        is_last = add_watched(sums, req_id, request);
        if (is_last > 0
            && ((last_chunks == NULL && (last_chunks = PyList_New(0)) == NULL)
                || PyList_Append(last_chunks, req_id) < 0))
            is_last = -1;
        Py_DECREF(req_id);
        Py_DECREF(request);
    }
    for (Py_ssize_t i = 0; is_last >= 0 && last_chunks && i < PyList_GET_SIZE(last_chunks); i++)
        is_last = PyDict_DelItem(self->watched, PyList_GET_ITEM(last_chunks, i));
    Py_XDECREF(last_chunks);
    return is_last < 0 ? -1 : 0;
}

/* Adds a request that is in a batch for the first time. */
static int
add_new(Hook *self, Prefill *sums, PyObject *data, PyObject *requests, Py_ssize_t *num_new,
        Py_ssize_t *num_cached, Py_ssize_t *new_context)
{
    int status = -1, continues = 0;
    Py_ssize_t computed, num_tokens;
    PyObject *request = NULL, *streaming = NULL, *chunk = NULL;
    PyObject *req_id = PyObject_GetAttr(data, name_of.req_id);
    if (req_id == NULL || is_error(computed = number(data, name_of.num_computed_tokens))
        || (request = PyObject_GetItem(requests, req_id)) == NULL
        || (streaming = PyObject_GetAttr(request, name_of.streaming_queue)) == NULL
        || (chunk = PyObject_GetItem(sums->chunks, req_id)) == NULL
        || is_error(num_tokens = PyLong_AsSsize_t(chunk)))
        goto end;
    if (streaming != Py_None) {
        PyObject *answer = PyObject_CallMethodOneArg(self->account, name_of.continues, request);
        continues = answer == NULL ? -1 : PyObject_IsTrue(answer);
        Py_XDECREF(answer);
    }
    if (continues < 0)
        goto end;
    *num_new += !continues;
    *num_cached += continues ? 0 : computed;
    *new_context += computed;
    int goes_on = is_true(request, name_of.is_prefill_chunk);
    if (goes_on < 0 || add_prefill(sums, req_id, chunk, num_tokens, computed) < 0)
        goto end;
    status = goes_on ? PyDict_SetItem(self->watched, req_id, request) : 0;
end:
    Py_XDECREF(req_id);
    Py_XDECREF(request);
    Py_XDECREF(streaming);
    Py_XDECREF(chunk);
    return status;
}

/* Tells whether nothing but new requests, finished ones and prefill need be followed. */
static int
is_common(Hook *self, PyObject *output, PyObject *cached, PyObject *chunks, PyObject *new)
{
    if (self->carried != Py_None || !PyDict_Check(chunks) || PyDict_GET_SIZE(chunks) == 0
        || !PyList_Check(new))
        return 0;
    int answer = is_true(output, name_of.preempted_req_ids);
    if (answer == 0)
        answer = is_true(cached, name_of.resumed_req_ids);
    /* Resumed requests that are told of as if they were new. */
    for (Py_ssize_t i = 0;
         answer == 0 && PyDict_GET_SIZE(self->watched) > 0 && i < PyList_GET_SIZE(new); i++) {
        PyObject *req_id = PyObject_GetAttr(PyList_GET_ITEM(new, i), name_of.req_id);
        answer = req_id == NULL ? -1 : PyDict_Contains(self->watched, req_id);
        Py_XDECREF(req_id);
    }
    return answer < 0 ? -1 : !answer;
}

static int
forget_finished(Hook *self, PyObject *output)
{
    PyObject *finished = PyObject_GetAttr(output, name_of.finished_req_ids);
    PyObject *iterator = finished == NULL ? NULL : PyObject_GetIter(finished), *req_id;
    Py_XDECREF(finished);
    if (iterator == NULL)
        return -1;
    int status = 0;
    while (status >= 0 && (req_id = PyIter_Next(iterator)) != NULL) {
        status = PyDict_Contains(self->watched, req_id);
        if (status > 0)
            status = PyDict_DelItem(self->watched, req_id);
        Py_DECREF(req_id);
    }
    Py_DECREF(iterator);
    return status < 0 || PyErr_Occurred() ? -1 : 0;
}

/* Keeps account of the step, and returns its events. */
static PyObject *
follow(Hook *self, PyObject *output, PyObject *cached, PyObject *chunks)
{
    PyObject *new = PyObject_GetAttr(output, name_of.scheduled_new_reqs), *events = NULL;
    PyObject *requests = NULL;
    int answer = new == NULL ? -1 : is_common(self, output, cached, chunks, new);
    if (answer <= 0) {
        Py_XDECREF(new);
        return answer < 0 ? NULL
                          : PyObject_CallMethodOneArg(self->account, name_of.follow, output);
    }
    Prefill sums = {chunks, PyDict_New(), 0, 0};
    Py_ssize_t num_new = 0, num_cached = 0, new_context = 0;
    if (sums.prefill == NULL)
        goto end;
    if (PyDict_GET_SIZE(self->watched) > 0
        && (forget_finished(self, output) < 0 || add_all_watched(self, &sums) < 0))
        goto end;
    if (PyList_GET_SIZE(new) > 0
        && (requests = PyObject_GetAttr(self->scheduler, name_of.requests)) == NULL)
        goto end;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(new); i++) {
        PyObject *data = Py_NewRef(PyList_GET_ITEM(new, i));
        int status = add_new(self, &sums, data, requests, &num_new, &num_cached, &new_context);
        Py_DECREF(data);
        if (status < 0)
            goto end;
    }
    PyObject *items[] = {
        Py_NewRef(sums.prefill),
        PyLong_FromSsize_t(sums.num_tokens - PyDict_GET_SIZE(sums.prefill)),
        PyLong_FromSsize_t(sums.context),
        PyLong_FromSsize_t(new_context),
        PyLong_FromSsize_t(num_new),
        PyLong_FromSsize_t(0),
        PyLong_FromSsize_t(num_cached),
        PyLong_FromSsize_t(0),
        PyLong_FromSsize_t(0),
    };
    events = tuple_of(items, Py_ARRAY_LENGTH(items));
end:
    Py_DECREF(new);
    Py_XDECREF(requests);
    Py_XDECREF(sums.prefill);
    return events;
}

/* ---- schedule: every step ---- */

static int
look(Hook *self, PyObject *pending, PyObject *output, Time began, Time ended)
{
    int status = -1, is_plain = 0;
    PyObject *chunks = NULL, *computed = NULL, *events = NULL;
    PyObject *cached = PyObject_GetAttr(output, name_of.scheduled_cached_reqs);
    if (cached == NULL
        || (computed = PyObject_GetAttr(cached, name_of.num_computed_tokens)) == NULL)
        goto end;
    Py_ssize_t num_cached = PyObject_Size(computed);
    Py_ssize_t total = number(output, name_of.total_num_scheduled_tokens), num_reqs = total;
    if (num_cached < 0 || is_error(total))
        goto end;
    if (total == num_cached && PyDict_GET_SIZE(self->watched) == 0 && self->carried == Py_None) {
        if ((is_plain = is_true(output, name_of.preempted_req_ids)) < 0)
            goto end;
        is_plain = !is_plain;
    }
    if (is_plain)
        events = Py_NewRef(Py_None);
    else if ((chunks = PyObject_GetAttr(output, name_of.num_scheduled_tokens)) == NULL
             || (num_reqs = PyObject_Size(chunks)) < 0
             || (events = follow(self, output, cached, chunks)) == NULL)
        goto end;
    status = num_reqs == 0
                 ? done(PyObject_CallMethodOneArg(self->account, name_of.carry, output))
                 : begin_batch(self, pending, output, began, ended, total, num_reqs, computed,
                               events);
end:
    Py_XDECREF(cached);
    Py_XDECREF(chunks);
    Py_XDECREF(computed);
    Py_XDECREF(events);
    return status;
}

static PyObject *
hook_schedule(Hook *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    Time began = has_account(self) ? now(self) : NO_TIME;
    if (began == NO_TIME)
        return NULL;
    PyObject *inner = Py_NewRef(self->inner_schedule);
    PyObject *output = PyObject_Vectorcall(inner, args, nargs, names);
    Py_DECREF(inner);
    Time ended = output == NULL ? NO_TIME : now(self);
    if (ended == NO_TIME) {
        Py_XDECREF(output);
        return NULL;
    }
    /* A signal handler may switch the hook off at any time. */
    PyObject *pending = Py_NewRef(self->pending);
    if (pending != Py_None && look(self, pending, output, began, ended) < 0) {
        PyObject *error = caught();
        if (error == NULL || done(CALL(self->account, name_of.not_scheduled, output, error)) < 0)
            Py_CLEAR(output);
        Py_XDECREF(error);
    }
    Py_DECREF(pending);
    return output;
}

/* ---- update_from_output ---- */

/* What is known of a batch from before its result is taken in. */
typedef struct {
    int is_ours;
    PyObject *id;
    PyObject *batch;
    PyObject *drafts;
} Found;

/* Takes the batch of `output` out of those that are pending; its pair, NULL if there is none. */
static PyObject *
take(Hook *self, PyObject *output)
{
    PyObject *pending = Py_NewRef(self->pending), *late = NULL, *pair = NULL;
    if (pending == Py_None || deque_length(pending) == 0)
        goto end;
    pair = PyObject_CallOneArg(deque_popleft, pending);
    if (pair == NULL || PyTuple_GET_ITEM(pair, 0) == output)
        goto end;
    /* Not the oldest: back to where it was, and then it is for the account. */
    PyObject *both[] = {pending, pair};
    int is_late = done(PyObject_Vectorcall(deque_appendleft, both, 2, NULL));
    Py_CLEAR(pair);
    if (is_late == 0 && (late = CALL(self->account, name_of.is_late, output)) != NULL)
        is_late = PyObject_IsTrue(late);
    if (is_late > 0)
        pair = PyObject_CallOneArg(deque_popleft, pending);
end:
    Py_DECREF(pending);
    Py_XDECREF(late);
    return pair;
}

static int
find(Hook *self, PyObject *output, PyObject *model_output, Found *found)
{
    PyObject *pair = take(self, output);
    if (pair == NULL)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *batch = found->batch = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
    Py_DECREF(pair);
    if (batch != Py_None && !Py_IS_TYPE(batch, &ScheduledType)) {
        PyErr_SetString(PyExc_TypeError, "what is pending was not scheduled by this hook");
        return -1;
    }
    if ((found->id = PyIter_Next(self->ids)) == NULL)
        return -1;
    found->is_ours = 1;
    /* Without events and with decode chunks of 1 only there are no drafts. */
    if (batch == Py_None
        || (((Scheduled *)batch)->events == Py_None && ((Scheduled *)batch)->decode == Py_None))
        return 0;
    int has_drafts = is_true(output, name_of.scheduled_spec_decode_tokens);
    if (has_drafts <= 0)
        return has_drafts;
    PyObject *drafts = CALL(self->account, name_of.drafts, output, model_output);
    if (drafts == NULL)
        return -1;
    Py_SETREF(found->drafts, drafts);
    return 0;
}

/* Adds up the generated tokens of one client's outputs. */
static Py_ssize_t
generated_of(PyObject *client, int has_drafts)
{
    PyObject *outputs = PyObject_GetAttr(client, name_of.outputs);
    if (outputs == NULL)
        return -1;
    Py_SETREF(outputs, PySequence_Fast(outputs, "outputs of an engine core are no sequence"));
    if (outputs == NULL)
        return -1;
    Py_ssize_t length = PySequence_Fast_GET_SIZE(outputs), sum = 0;
    int is_plain = 0;
    if (length > 0 && !has_drafts)
        is_plain = is_true(PySequence_Fast_GET_ITEM(outputs, length - 1), name_of.new_token_ids);
    if (is_plain < 0)
        sum = -1;
    else if (is_plain)
        sum = length;
    for (Py_ssize_t i = 0; !is_plain && sum >= 0 && i < PySequence_Fast_GET_SIZE(outputs); i++) {
        Py_ssize_t tokens = size(PySequence_Fast_GET_ITEM(outputs, i), name_of.new_token_ids);
        sum = tokens < 0 ? -1 : sum + tokens;
    }
    Py_DECREF(outputs);
    return sum;
}

/* Adds up the generated tokens of a step. */
static Py_ssize_t
generated_in(PyObject *returned, int has_drafts)
{
    PyObject *client;
    Py_ssize_t place = 0, sum = 0;
    if (!PyDict_Check(returned)) {
        PyErr_SetString(PyExc_TypeError, "update_from_output returned no dict");
        return -1;
    }
    while (sum >= 0 && PyDict_Next(returned, &place, NULL, &client)) {
        Py_INCREF(client);
        Py_ssize_t tokens = generated_of(client, has_drafts);
        Py_DECREF(client);
        sum = tokens < 0 ? -1 : sum + tokens;
    }
    return sum;
}

/* Tells when a worker had the result ready: `taken`, where it does not say. */
static Time
ready_of(Hook *self, Time taken, Time submitted, PyObject *model_output)
{
    if (!self->has_workers)
        return taken;
    PyObject *stamp;
    if (PyObject_GetOptionalAttr(model_output, self->stamp_name, &stamp) < 0)
        return NO_TIME;
    int is_there = stamp == NULL ? 0 : PyObject_IsTrue(stamp);
    Time ready = is_there < 0 ? NO_TIME : taken;
    if (is_there > 0
        && (!PyTuple_Check(stamp) || PyTuple_GET_SIZE(stamp) != 2
            || !PyUnicode_Check(PyTuple_GET_ITEM(stamp, 0)))) {
        PyErr_SetString(PyExc_TypeError, "a stamp is a clock and ns");
        ready = NO_TIME;
    } else if (is_there > 0
               && PyUnicode_Compare(PyTuple_GET_ITEM(stamp, 0), self->stamp_clock) == 0)
        ready = as_time(Py_NewRef(PyTuple_GET_ITEM(stamp, 1)));
    Py_XDECREF(stamp);
    if (is_there <= 0 || ready == NO_TIME)
        return ready;
    /* Never after it was taken, before the hand-over, or before the result of the last. */
    if (ready > taken)
        ready = taken;
    if (ready < submitted)
        ready = submitted;
    return ready < self->previous ? self->previous : ready;
}

static int
hand_over(Hook *self, PyObject *returned, Time taken, Time updated, PyObject *model_output,
          Found *found)
{
    Scheduled *batch = (Scheduled *)found->batch;
    Py_ssize_t generated = generated_in(returned, found->drafts != Py_None);
    if (generated < 0)
        return -1;
    Time ready = ready_of(self, taken, batch->ended, model_output);
    if (ready == NO_TIME)
        return -1;
    Measurement *measurement = PyObject_New(Measurement, &MeasurementType);
    if (measurement == NULL)
        return -1;
    measurement->previous = self->previous;
    measurement->ready = self->previous = ready;
    measurement->taken = taken;
    measurement->updated = updated;
    measurement->generated = generated;
    measurement->id = Py_NewRef(found->id);
    measurement->drafts = Py_NewRef(found->drafts);
    measurement->batch = (Scheduled *)Py_NewRef(found->batch);
    PyObject *item = (PyObject *)measurement;
    int status = deque_length(self->queue) < self->room
                     ? append(self->queue, item)
                     : done(PyObject_CallMethodOneArg(self->account, name_of.put, item));
    Py_DECREF(item);
    return status;
}

/* Hands over a batch that has a result; 0 unless an exception is to reach the engine. */
static int
end_batch(Hook *self, PyObject *returned, Time taken, PyObject *model_output, Found *found)
{
    PyObject *error = NULL;
    Time updated = now(self);
    int status = -1;
    if (updated == NO_TIME)
        return -1;
    if (found->batch == Py_None) {
        self->previous = taken;
        status = done(CALL(self->account, name_of.lost, Py_None));
    } else if (hand_over(self, returned, taken, updated, model_output, found) == 0)
        status = 0;
    else if ((error = caught()) != NULL)
        status = done(CALL(self->account, name_of.lost, error));
    Py_XDECREF(error);
    return status;
}

static PyObject *
hook_update_from_output(Hook *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    PyObject *returned = NULL, *error = NULL;
    Time taken = has_account(self) ? now(self) : NO_TIME;
    if (taken == NO_TIME)
        return NULL;
    PyObject *output = argument(args, nargs, names, 0, name_of.scheduler_output);
    PyObject *model_output = argument(args, nargs, names, 1, name_of.model_runner_output);
    Found found = {0, NULL, NULL, Py_NewRef(Py_None)};

    if (find(self, output, model_output, &found) < 0) {
        if ((error = caught()) == NULL || done(CALL(self->account, name_of.failed, error)) < 0)
            goto end;
        Py_SETREF(found.drafts, PyTuple_Pack(2, Py_None, Py_None));
        if (found.drafts == NULL)
            goto end;
    }
    PyObject *inner = Py_NewRef(self->inner_update);
    returned = PyObject_Vectorcall(inner, args, nargs, names);
    Py_DECREF(inner);
    if (!found.is_ours)
        goto end;
    if (returned == NULL) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (done(CALL(self->account, name_of.without_result, found.id, found.batch)) == 0)
            PyErr_Restore(type, value, traceback);
        else
            raise_after(type, value, traceback);
    } else if (end_batch(self, returned, taken, model_output, &found) < 0)
        Py_CLEAR(returned);
end:
    Py_XDECREF(error);
    Py_XDECREF(found.id);
    Py_XDECREF(found.batch);
    Py_XDECREF(found.drafts);
    return returned;
}

/* ---- The type ---- */

static int
hook_init(Hook *self, PyObject *args, PyObject *kwargs)
{
    int has_workers, has_request_ids, reads_system_clock;
    PyObject *previous;
#define X(name) #name,
    static char *names[] = {
        OBJECTS(X) "previous", "has_workers", "has_request_ids", "reads_system_clock", NULL};
#undef X
#define X(name) PyObject *name;
    OBJECTS(X)
#undef X
#define X(name) &name,
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOOOOOOOOOOOOOOOOppp", names, OBJECTS(X)
                                     &previous, &has_workers, &has_request_ids,
                                     &reads_system_clock))
        return -1;
#undef X
    if (!PyObject_TypeCheck(queue, deque_type) || !PyObject_TypeCheck(pending, deque_type)
        || !PyDict_Check(watched)) {
        PyErr_SetString(PyExc_TypeError, "queue and pending must be deques, watched a dict");
        return -1;
    }
    self->previous = NO_TIME;
    if (previous != Py_None && (self->previous = as_time(Py_NewRef(previous))) == NO_TIME)
        return -1;
#define X(name) Py_XSETREF(self->name, Py_NewRef(name));
    OBJECTS(X)
#undef X
    self->has_workers = has_workers;
    self->has_request_ids = has_request_ids;
    self->reads_system_clock = reads_system_clock;
    self->room = 0;
    int are_deques = PyObject_TypeCheck(waiting, deque_type)
                     && PyObject_TypeCheck(also_waiting, deque_type);
    self->waiting_length = are_deques ? deque_length : PyObject_Size;
    return 0;
}

static int
hook_traverse(Hook *self, visitproc visit, void *arg)
{
#define X(name) Py_VISIT(self->name);
    OBJECTS(X)
#undef X
    return 0;
}

static int
hook_clear(Hook *self)
{
#define X(name) Py_CLEAR(self->name);
    OBJECTS(X)
#undef X
    return 0;
}

static void
hook_dealloc(Hook *self)
{
    PyObject_GC_UnTrack(self);
    hook_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef hook_methods[] = {
    {"schedule", (PyCFunction)(void (*)(void))hook_schedule, METH_FASTCALL | METH_KEYWORDS,
     "Schedule as before, and read what the next steps will change."},
    {"update_from_output", (PyCFunction)(void (*)(void))hook_update_from_output,
     METH_FASTCALL | METH_KEYWORDS, "Take in a result as before, and hand the batch over."},
    {NULL, NULL, 0, NULL},
};

/* What may be set: never to nothing, and `pending` to None, or to what it was. */
static int
hook_set(Hook *self, PyObject *value, void *offset)
{
    PyObject **place = (PyObject **)((char *)self + (Py_ssize_t)offset);
    int is_right = value != NULL && self->account != NULL;
    if (is_right && place == &self->pending)
        is_right = value == Py_None || PyObject_TypeCheck(value, deque_type);
    if (!is_right) {
        PyErr_SetString(PyExc_TypeError, "a hook cannot do with that");
        return -1;
    }
    Py_SETREF(*place, Py_NewRef(value));
    return 0;
}

static PyObject *
hook_get(Hook *self, void *offset)
{
    PyObject *value = *(PyObject **)((char *)self + (Py_ssize_t)offset);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static PyObject *
hook_get_previous(Hook *self, void *Py_UNUSED(closure))
{
    return time_as_object(self->previous);
}

#define SETTABLE(name)                                                                          \
    {#name, (getter)hook_get, (setter)hook_set, NULL, (void *)offsetof(Hook, name)}

static PyGetSetDef hook_settable[] = {
    SETTABLE(pending),      SETTABLE(carried), SETTABLE(free_blocks),
    SETTABLE(inner_update),
    {"previous", (getter)hook_get_previous, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef hook_members[] = {
#define READABLE(name) {#name, T_OBJECT, offsetof(Hook, name), READONLY, NULL}
    READABLE(account),
    READABLE(inner_schedule),
    READABLE(scheduler),
    READABLE(waiting),
    READABLE(also_waiting),
    READABLE(watched),
    READABLE(queue),
    READABLE(ids),
    READABLE(stamp_name),
    READABLE(stamp_clock),
    READABLE(now),
    READABLE(length),
    {"room", T_PYSSIZET, offsetof(Hook, room), 0, NULL},
    {"has_workers", T_BOOL, offsetof(Hook, has_workers), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject HookType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sched_profiler.engines._vllm_hook.Hook",
    .tp_doc = "The hook of vllm_hook.py, in C.",
    .tp_basicsize = sizeof(Hook),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)hook_init,
    .tp_traverse = (traverseproc)hook_traverse,
    .tp_clear = (inquiry)hook_clear,
    .tp_dealloc = (destructor)hook_dealloc,
    .tp_methods = hook_methods,
    .tp_members = hook_members,
    .tp_getset = hook_settable,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sched_profiler.engines._vllm_hook",
    .m_doc = "The hook of vllm_hook.py, in C.",
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__vllm_hook(void)
{
#define X(name)                                                                                 \
    if ((name_of.name = PyUnicode_InternFromString(#name)) == NULL)                                 \
        return NULL;
    NAMES(X)
#undef X
    PyObject *collections = PyImport_ImportModule("collections");
    deque_type = collections == NULL
                     ? NULL
                     : (PyTypeObject *)PyObject_GetAttrString(collections, "deque");
    Py_XDECREF(collections);
    if (deque_type == NULL)
        return NULL;
    deque_length = deque_type->tp_as_sequence->sq_length;
    deque_append = PyObject_GetAttrString((PyObject *)deque_type, "append");
    deque_popleft = PyObject_GetAttrString((PyObject *)deque_type, "popleft");
    deque_appendleft = PyObject_GetAttrString((PyObject *)deque_type, "appendleft");
    if (deque_append == NULL || deque_appendleft == NULL || deque_popleft == NULL)
        return NULL;
    if (PyType_Ready(&ScheduledType) < 0 || PyType_Ready(&MeasurementType) < 0)
        return NULL;
    PyObject *self = PyModule_Create(&module);
    if (self != NULL && PyModule_AddType(self, &HookType) < 0)
        Py_CLEAR(self);
    return self;
}
