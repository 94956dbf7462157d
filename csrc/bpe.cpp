// Byte-pair encoding (arXiv:1508.07909): words become tokens by the earliest merges first, the leftmost of equals.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nb = nanobind;

namespace qt {
void bind_bpe(nb::module_& m);
namespace {

std::string_view utf8(nb::handle text) {
    Py_ssize_t n;
    const char* p = PyUnicode_AsUTF8AndSize(text.ptr(), &n);
    if (!p) throw nb::python_error();
    return {p, size_t(n)};
}

size_t length_of_character(unsigned char first) { return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4; }

// What two neighbours become, and when: pairs of ids -> (rank, id), open addressing.
class Merges {
public:
    struct Merge {
        uint64_t pair = free;
        uint32_t rank;
        int32_t id;
    };
    explicit Merges(size_t n) {
        size_t size = 16;
        while (size < n + n / 2) size *= 2;
        table_.resize(size);
    }
    const Merge* find(int32_t left, int32_t right) const {
        const uint64_t pair = pair_of(left, right);
        for (size_t i = place(pair);; i = (i + 1) & (table_.size() - 1)) {
            if (table_[i].pair == pair) return &table_[i];
            if (table_[i].pair == free) return nullptr;
        }
    }
    // Of equal pairs the first counts.
    void add(int32_t left, int32_t right, uint32_t rank, int32_t id) {
        const uint64_t pair = pair_of(left, right);
        size_t i = place(pair);
        while (table_[i].pair != free && table_[i].pair != pair) i = (i + 1) & (table_.size() - 1);
        if (table_[i].pair == free) table_[i] = {pair, rank, id};
    }

private:
    static constexpr uint64_t free = ~uint64_t(0);
    std::vector<Merge> table_;
    static uint64_t pair_of(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }
    size_t place(uint64_t pair) const { return (pair * 0x9E3779B97F4A7C15u) >> 32 & (table_.size() - 1); }
};

class Bpe {
public:
    Bpe(nb::dict ids, nb::sequence merges, std::vector<std::string> bytes, bool bytewise_words, bool whole_words)
        : merges_(nb::len(merges)), bytes_(std::move(bytes)), bytewise_words_(bytewise_words), whole_words_(whole_words) {
        if (bytes_.size() != 256) throw nb::value_error("expected 256 texts of bytes");
        size_t room = 0;
        for (auto [text, id] : ids) room += utf8(text).size();
        texts_.reserve(room);  // views into it stay where they are
        ids_.reserve(nb::len(ids));
        for (auto [text, id] : ids) {
            const std::string_view t = utf8(text);
            texts_.append(t);
            ids_.emplace(std::string_view(texts_).substr(texts_.size() - t.size()), nb::cast<int32_t>(id));
        }
        for (size_t b = 0; b < 256; b++) id_of_byte_[b] = id_of(bytes_[b]);
        uint32_t rank = 0;
        std::string both;
        for (nb::handle merge : merges) {
            const std::string_view t = PyUnicode_Check(merge.ptr()) ? text_of(merge) : std::string_view();
            const size_t blank = t.find(' ', 1);
            if (blank == std::string_view::npos || blank + 1 == t.size()) {
                refused_.push_back(rank++);
                continue;
            }
            const std::string_view left = t.substr(0, blank), right = t.substr(blank + 1);
            both.assign(left).append(right);
            const int32_t a = id_of(left), b = id_of(right), c = id_of(both);
            if (a < 0 || b < 0 || c < 0) refused_.push_back(rank);
            else merges_.add(a, b, rank, c);
            rank++;
        }
    }

    // Numbers of the merges that name what is no token, or are none.
    const std::vector<uint32_t>& refused() const { return refused_; }

    // The ids of words, the first items of tuples; characters without a token part their neighbours and have none.
    std::vector<int32_t> encode(nb::list words) const {
        std::vector<std::string_view> texts;
        texts.reserve(nb::len(words));
        for (nb::handle word : words) texts.push_back(utf8(nb::borrow<nb::tuple>(word)[0]));
        std::vector<int32_t> out;
        nb::gil_scoped_release release;
        Work work;
        for (std::string_view text : texts) append(text, work, out);
        return out;
    }

private:
    struct Symbol {
        int32_t id, before, after;  // ids of no token are negative; neighbours by place, negative for none
    };
    struct Candidate {
        uint32_t rank;
        int32_t at, left, right, id;  // ids of the pair as it was found
        bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
    };
    struct Work {
        std::string mapped;
        std::vector<Symbol> symbols;
        std::vector<Candidate> heap;
    };
    static constexpr size_t short_word = 24;  // symbols up to which looking at all pairs again beats a heap

    Merges merges_;
    std::string texts_;
    std::unordered_map<std::string_view, int32_t> ids_;
    std::vector<std::string> bytes_;
    std::array<int32_t, 256> id_of_byte_;
    std::vector<uint32_t> refused_;
    bool bytewise_words_, whole_words_;

    int32_t id_of(std::string_view text) const {
        const auto found = ids_.find(text);
        return found == ids_.end() ? -1 : found->second;
    }

    // A text, or nothing where it is broken UTF-8, which no token is.
    static std::string_view text_of(nb::handle text) {
        Py_ssize_t n;
        const char* p = PyUnicode_AsUTF8AndSize(text.ptr(), &n);
        if (!p) PyErr_Clear();
        return p ? std::string_view(p, size_t(n)) : std::string_view();
    }

    void append(std::string_view word, Work& work, std::vector<int32_t>& out) const {
        if (whole_words_) {
            std::string_view text = word;
            if (bytewise_words_) {
                work.mapped.clear();
                for (unsigned char b : word) work.mapped += bytes_[b];
                text = work.mapped;
            }
            if (const int32_t id = id_of(text); id >= 0) {
                out.push_back(id);
                return;
            }
        }
        work.symbols.clear();
        if (bytewise_words_)
            for (unsigned char b : word) work.symbols.push_back({id_of_byte_[b], 0, 0});
        else
            for (size_t i = 0, n; i < word.size(); i += n) {
                n = std::min(length_of_character(static_cast<unsigned char>(word[i])), word.size() - i);
                by_character(word.substr(i, n), work.symbols);
            }
        if (work.symbols.size() <= short_word) merge_short(work.symbols);
        else merge_long(work);
        for (const Symbol& s : work.symbols)
            if (s.id >= 0) out.push_back(s.id);
    }

    // A character's token, else those of its bytes if all have one.
    void by_character(std::string_view character, std::vector<Symbol>& symbols) const {
        int32_t id = id_of(character);
        const bool bytes = id < 0 && std::all_of(character.begin(), character.end(), [&](char c) { return id_of_byte_[static_cast<unsigned char>(c)] >= 0; });
        if (!bytes) symbols.push_back({id, 0, 0});
        else
            for (unsigned char b : character) symbols.push_back({id_of_byte_[b], 0, 0});
    }

    void merge_short(std::vector<Symbol>& s) const {
        std::array<const Merges::Merge*, short_word> of;  // of each symbol and the next
        for (size_t i = 0; i + 1 < s.size(); i++) of[i] = between(s[i].id, s[i + 1].id);
        while (s.size() > 1) {
            size_t best = s.size();
            for (size_t i = 0; i + 1 < s.size(); i++)
                if (of[i] && (best == s.size() || of[i]->rank < of[best]->rank)) best = i;
            if (best == s.size()) return;
            s[best].id = of[best]->id;
            s.erase(s.begin() + long(best) + 1);
            std::copy(of.begin() + long(best) + 1, of.begin() + long(s.size()), of.begin() + long(best));
            if (best) of[best - 1] = between(s[best - 1].id, s[best].id);
            if (best + 1 < s.size()) of[best] = between(s[best].id, s[best + 1].id);
        }
    }

    void merge_long(Work& work) const {
        std::vector<Symbol>& s = work.symbols;
        std::vector<Candidate>& heap = work.heap;
        heap.clear();
        const int32_t n = int32_t(s.size());
        for (int32_t i = 0; i < n; i++) s[size_t(i)].before = i - 1, s[size_t(i)].after = i + 1 < n ? i + 1 : -1;
        for (int32_t i = 0; i + 1 < n; i++) consider(i, s, heap);
        std::make_heap(heap.begin(), heap.end());
        while (!heap.empty()) {
            std::pop_heap(heap.begin(), heap.end());
            const Candidate c = heap.back();
            heap.pop_back();
            Symbol& left = s[size_t(c.at)];
            if (left.id != c.left || left.after < 0 || s[size_t(left.after)].id != c.right) continue;  // of before another merge
            Symbol& right = s[size_t(left.after)];
            left.id = c.id;
            left.after = right.after;
            if (right.after >= 0) s[size_t(right.after)].before = c.at;
            right.id = -1;
            const int32_t before = left.before;
            for (int32_t at : {before, c.at})
                if (at >= 0 && consider(at, s, heap)) std::push_heap(heap.begin(), heap.end());
        }
    }

    bool consider(int32_t at, const std::vector<Symbol>& s, std::vector<Candidate>& heap) const {
        const Symbol& left = s[size_t(at)];
        if (left.after < 0) return false;
        const int32_t right = s[size_t(left.after)].id;
        const Merges::Merge* merge = between(left.id, right);
        if (merge) heap.push_back({merge->rank, at, left.id, right, merge->id});
        return merge != nullptr;
    }

    const Merges::Merge* between(int32_t left, int32_t right) const {
        return left < 0 || right < 0 ? nullptr : merges_.find(left, right);
    }
};
}  // namespace
}  // namespace qt

void qt::bind_bpe(nb::module_& m) {
    nb::class_<Bpe>(m, "Bpe", "Byte-pair encoding of words by a vocabulary and its merges.")
        .def(nb::init<nb::dict, nb::sequence, std::vector<std::string>, bool, bool>(), nb::arg("ids"), nb::arg("merges"),
             nb::arg("bytes"), nb::arg("bytewise_words"), nb::arg("whole_words"),
             "`ids` of texts, merges `left right` in order, the texts of the 256 bytes; words of bytes that all have such a text, "
             "or of characters that may fall back to them; whether a word that is a token is not merged.")
        .def_prop_ro("refused", [](const Bpe& self) { return self.refused(); }, "Numbers of the merges that name no tokens.")
        .def("encode", &Bpe::encode, nb::arg("words"), "The ids of words, given as the first items of tuples.");
}
